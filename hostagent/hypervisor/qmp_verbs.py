"""Questions and orders to a QEMU in QMP's words, whichever way they reach it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from hostagent.errors import Failed
from hostagent.hypervisor import Move, MoveStatus, RunState

BALLAST = "hostagent-ballast"  # a block node, and the bitmap on it
_BALLAST_BYTES = 65536  # one bit of its bitmap
_FD_NAME = "hostagent"
_SHORT_SECONDS = 0.002
_POLL_SECONDS = 0.05  # no event says it, and the guest runs
_UNDER_WAY = {"setup", "active", "device", "pre-switchover", "wait-unplug", "postcopy-active", "cancelling"}


class QmpVerbs(ABC):
    """`Sender`, for whoever can put a question to a QEMU."""

    @abstractmethod
    def ask(self, command: str, **arguments: object) -> object:
        """The answer; raises Failed when QEMU refuses or is gone, OutcomeUnknown when it does not answer."""

    @abstractmethod
    def give(self, channel: int, name: str) -> None:
        """Hand a descriptor over, under a name (`getfd` of QEMU's QMP reference)."""

    def run_state(self) -> RunState:
        return as_run_state(self.ask("query-status"))

    def capabilities(self) -> Mapping[str, bool]:
        rows = as_rows(self.ask("query-migrate-capabilities"))
        return {str(row["capability"]): bool(row["state"]) for row in rows}

    def set_capabilities(self, wanted: Mapping[str, bool]) -> None:
        rows = [{"capability": name, "state": state} for name, state in wanted.items()]
        if rows:
            self.ask("migrate-set-capabilities", capabilities=rows)

    def parameters(self) -> Mapping[str, object]:
        return as_mapping(self.ask("query-migrate-parameters"))

    def set_parameters(self, wanted: Mapping[str, object]) -> None:
        if wanted:
            self.ask("migrate-set-parameters", **wanted)

    def blocked_reasons(self) -> tuple[str, ...]:
        return tuple(str(reason) for reason in as_mapping(self.ask("query-migrate")).get("blocked-reasons", ()))

    def receive_state(self, channel: int) -> None:
        self.give(channel, _FD_NAME)
        self.ask("migrate-incoming", uri=f"fd:{_FD_NAME}")

    def send_state(self, channel: int) -> None:
        self.give(channel, _FD_NAME)
        self.ask("migrate", uri=f"fd:{_FD_NAME}")

    def move(self) -> Move:
        answer = as_mapping(self.ask("query-migrate"))
        status = str(answer.get("status", "none"))
        if status == "completed":
            folded = MoveStatus.COMPLETED
        elif status in _UNDER_WAY:
            folded = MoveStatus.UNDER_WAY
        else:
            folded = MoveStatus.NONE if status == "none" else MoveStatus.FAILED
        ram = answer.get("ram") or {}
        error = str(answer.get("error-desc", "")) or (status if folded is MoveStatus.FAILED else "")
        left = int(ram["remaining"]) if "remaining" in ram else None
        return Move(folded, int(ram.get("transferred", 0)), error, left, int(ram.get("total", 0)))

    def wait_begun(self, within_seconds: float) -> None:
        ends = time.monotonic() + within_seconds
        while (move := self.move()).ram_left is None:  # it tells of the RAM once that is set up
            if move.status is not MoveStatus.UNDER_WAY or time.monotonic() > ends:
                raise Failed("beginning to copy the RAM", expected="QEMU to begin", found=move.error or "nothing")
            time.sleep(_SHORT_SECONDS)

    def wait_sent(self, within_seconds: float) -> Move:
        ends = time.monotonic() + within_seconds
        while (move := self.move()).status is MoveStatus.UNDER_WAY and move.ram_left != 0 and time.monotonic() < ends:
            time.sleep(_POLL_SECONDS)
        return move

    def halt(self) -> None:
        self.ask("stop")

    def go_on(self) -> None:
        self.ask("cont")

    # -- a copy of the RAM ------------------------------------------------------------------------------------

    def put_ballast(self, *, bitmap: bool) -> None:
        self.ask("blockdev-add", **{"driver": "null-co", "node-name": BALLAST, "size": _BALLAST_BYTES})
        if bitmap:
            self.ask("block-dirty-bitmap-add", node=BALLAST, name=BALLAST)

    def drop_ballast(self) -> None:
        nodes = as_rows(self.ask("query-named-block-nodes", flat=True))
        found = next((node for node in nodes if node.get("node-name") == BALLAST), None)
        if found is None:
            return
        if found.get("dirty-bitmaps"):
            self.ask("block-dirty-bitmap-remove", node=BALLAST, name=BALLAST)
        self.ask("blockdev-del", **{"node-name": BALLAST})

    def watch_dirtying(self) -> None:
        self.ask("calc-dirty-rate", **{"calc-time": 1})

    def dirtying(self) -> float | None:
        answer = as_mapping(self.ask("query-dirty-rate"))
        measured = answer.get("status") == "measured" and "dirty-rate" in answer
        return float(answer["dirty-rate"]) * 2**20 if measured else None


def as_run_state(answer: object) -> RunState:
    """Of query-status."""
    try:
        return RunState(str(as_mapping(answer).get("status")))
    except ValueError:
        return RunState.OTHER


def as_mapping(value: object) -> dict[str, Any]:
    """An answer that must be an object."""
    if not isinstance(value, dict):
        raise Failed("reading QEMU's answer", expected="an object", found=type(value).__name__)
    return value


def as_rows(value: object) -> list[dict[str, Any]]:
    """An answer that must be a list of objects."""
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise Failed("reading QEMU's answer", expected="a list of objects", found=type(value).__name__)
    return value
