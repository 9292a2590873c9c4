"""A guest's QEMU by way of libvirt, which has the monitor while its daemon is up: virDomainQemuMonitorCommandWithFiles.

libvirt marks a guest to which anything was said so as tainted by a custom monitor command, until it is started anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from hostagent.errors import Failed
from hostagent.hypervisor.qmp_verbs import QmpVerbs, as_mapping


class PassthroughMonitor(QmpVerbs):
    """`Sender` for one guest; `put` hands a command and descriptors to libvirt and returns QEMU's answer as text."""

    def __init__(self, name: str, put: Callable[[str, str, Sequence[int]], str]) -> None:
        self._name = name
        self._put = put

    def ask(self, command: str, **arguments: object) -> object:
        return self._said(command, arguments, ())

    def give(self, channel: int, name: str) -> None:
        self._said("getfd", {"fdname": name}, (channel,))

    def _said(self, command: str, arguments: dict[str, object], files: Sequence[int]) -> object:
        doing = f"{self._name}: asking its QEMU through libvirt: {command}"
        words = json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})})
        try:
            answer = as_mapping(json.loads(self._put(doing, words, files)))
        except ValueError as error:
            raise Failed(doing, expected="JSON", found=str(error)) from error
        if "error" in answer:
            raise Failed(doing, found=str(as_mapping(answer["error"]).get("desc", "")))
        return answer.get("return")
