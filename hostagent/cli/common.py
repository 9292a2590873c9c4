"""What verbs begin with: the settings, who asks, and the host to oneself."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol, TypeVar

from hostagent import wiring
from hostagent.cli.output import Output, log_to_stderr
from hostagent.cli.progress import Progress
from hostagent.cli.settings import settings_of
from hostagent.cli.signals import Signals
from hostagent.cli.verbs import Asked
from hostagent.config import Config, KernelSettings, LibvirtSettings
from hostagent.errors import HostagentError, UsageError
from hostagent.facts import Host
from hostagent.planning.way_back import not_kept
from hostagent.session import Session, changing
from hostagent.trees import qemu_trees
from hostagent.update.journal import UpdateRecord
from hostagent.update.journal_reader import read_updates


@dataclass(frozen=True)
class Call:
    """A verb that was called: its settings, and where its words go."""

    config: Config
    out: Output

    def keeping_definitions(self) -> Call:
        """The same, with persistent definitions left as they are."""
        update = self.config.update.model_copy(update={"adopt_definition": False})
        return replace(self, config=self.config.model_copy(update={"update": update}))

    def copying_storage(self) -> Call:
        """The same, with disks copied to peers that do not see them."""
        migrate = self.config.migrate.model_copy(update={"copy_storage": True})
        return replace(self, config=self.config.model_copy(update={"migrate": migrate}))

    def going_to_kernel(self, release: str | None) -> Call:
        """The same, with that kernel for the host; None leaves it to the settings."""
        if release is None:
            return self
        try:
            kernel = KernelSettings(release=release)
        except ValueError as error:
            raise UsageError(
                "reading --to", expected="a kernel's release, like uname -r", found=repr(release)
            ) from error
        return replace(self, config=self.config.model_copy(update={"kernel": kernel}))

    def going_to_libvirt(self, version: str | None) -> Call:
        """The same, with that version of libvirt's packages; None leaves it to the settings."""
        if version is None:
            return self
        try:
            libvirt = LibvirtSettings.model_validate({**dict(self.config.libvirt), "release": version})
            if not version:
                raise ValueError
        except ValueError as error:
            raise UsageError("reading --to", expected="a version of libvirt like 11.3", found=repr(version)) from error
        return replace(self, config=self.config.model_copy(update={"libvirt": libvirt}))

    def going_to(self, component: str, version: str | None) -> Call:
        """The same, with that version of a component of the host."""
        match component:
            case "kernel":
                return self.going_to_kernel(version)
            case "libvirtd":
                return self.going_to_libvirt(version)
            case _:
                return self

    def updates(self) -> tuple[UpdateRecord, ...]:
        """The journal's updates, oldest first; only looks."""
        return read_updates(wiring.journal_path(self.config))

    def host(self) -> Host:
        """What libvirt and the host say now."""
        libvirt = wiring.libvirt_of(self.config)
        try:
            return libvirt.host()
        finally:
            libvirt.disconnect()

    def host_and_peers(self) -> Host:
        """The same, and what the hosts say that its guests could migrate to."""
        return wiring.with_peers(self.config, self.host())

    def kept_host(self) -> Host:
        """The same, once what runs is kept, QEMU and the KVM modules: there is a way back to it after its upgrade."""
        try:
            wiring.kvm_of(self.config).keep()
        except HostagentError as error:
            self.out.note(f"the KVM modules are not kept: {error}")
        host = self.host_and_peers()
        tree = not_kept(host)
        if tree is None:
            return host
        self.out.note(f"keeping QEMU {tree.version} beside the system's own, for a way back to it ...")
        try:
            qemu_trees.keep(self.config.paths.state, self.config.paths.system_emulator)
        except HostagentError as error:
            self.out.note(f"it is not kept: {error}")
            return host
        return self.host_and_peers()


def begin(asked: Asked, *, root: bool = True) -> Call:
    """Settings read, permission checked."""
    log_to_stderr(debug=asked.debug)
    return Call(settings_of(asked, root=root), Output(as_json=asked.as_json))


@dataclass(frozen=True)
class Change:
    """The host is ours to change; signals are held."""

    session: Session
    signals: Signals


@contextmanager
def change(call: Call, doing: str) -> Iterator[Change]:
    """Take the host, after closing what was left open; signals are held from the first moment to the last."""
    names = {guest.uuid: guest.name for update in call.updates() for guest in update.guests.values()}
    with Signals().held() as signals, ExitStack() as stack:
        with Progress(call.out, names, stopping=signals.cancelled) as tell:
            session = stack.enter_context(changing(call.config, doing, tell))
        yield Change(session, signals)


def new_update_id() -> str:
    """Readable, sorts by time, never twice the same: 20261122-054501-ab12cd34."""
    return f"{datetime.fromtimestamp(wiring.now(), UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"


class _HasId(Protocol):
    @property
    def id(self) -> str: ...


Update = TypeVar("Update", bound=_HasId)


def of_id(updates: Sequence[Update], wanted: str) -> list[Update]:
    """The update of that id, or else those whose ids begin with it."""
    exact = [update for update in updates if update.id == wanted]
    return exact or [update for update in updates if update.id.startswith(wanted)]
