"""Writes the dashboards' JSON beside their Python: python -m grafana"""

from pathlib import Path

from grafana import host, pauses
from grafana.board import Board, text_of

BOARDS: tuple[Board, ...] = (pauses.BOARD, host.BOARD)


def main() -> None:
    for board in BOARDS:
        (Path(__file__).parent / f"{board.name}.json").write_text(text_of(board))


if __name__ == "__main__":
    main()
