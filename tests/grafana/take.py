"""Takes what the dashboards show, of updates of real guests in the bench, for draw.py: python -m tests.grafana.take"""

import json
import sys
import time
from dataclasses import asdict

from tests.bench.paths import BUILD
from tests.grafana.scene import GUESTS, MORE, scene
from tests.grafana.shown import BOARDS, Window, answers, marks, panels

TAKEN = BUILD / "grafana.json"
STEP_SECONDS = 5.0
APART_SECONDS = 20.0
"""Updates are as far apart as they can be told apart in a picture."""


def main() -> None:
    with scene((*GUESTS, *MORE)) as made:
        for to in ("10.0", "7.2", "10.0", "7.2"):
            made.update(to)
            time.sleep(APART_SECONDS)
            if to == "10.0":
                made.update_in_vain()
                time.sleep(APART_SECONDS)
        window = Window(made.begun, made.prometheus.wait_for_scrape(), STEP_SECONDS)
        taken = {
            board: {
                "window": asdict(window),
                "marks": [asdict(series) for series in marks(board, made.prometheus, window)],
                "panels": {
                    panel["title"]: [asdict(answer) for answer in answers(panel, made.prometheus, window)]
                    for panel in panels(board)
                },
            }
            for board in BOARDS
        }
    TAKEN.write_text(json.dumps(taken))


if __name__ == "__main__":
    sys.exit(main())
