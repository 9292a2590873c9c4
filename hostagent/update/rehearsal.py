"""A throw-away guest of each new shape goes through a whole handover before the first real one does.

It proves the machine type, CPU and devices on the new QEMU, that this libvirt comes back to such a process, and warms
libvirt's capability cache. What was proven is remembered in the journal, by shape, versions and both QEMUs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hostagent import __version__, processes
from hostagent.errors import Failed, HostagentError, NeedsOperator
from hostagent.facts import Host, QemuTree
from hostagent.hypervisor.domain_xml import RehearsalGuest, rehearsal_xml, shape_digest
from hostagent.plan import GuestPlan, HostPlan, Method, Plan, Technique
from hostagent.update.journal import Kind, Outcome, fold
from hostagent.update.ledger import begin, end_update, members_of
from hostagent.update.order import OrderedGuest, OrderKind, UpdateOrder
from hostagent.update.saga import Engine
from hostagent.update.subject import Ports

NAME_PREFIX = "hostagent-rehearsal-"


@dataclass(frozen=True)
class _Shape:
    """What a throw-away guest is made after, and how it goes over."""

    live_xml: str
    before: QemuTree | None
    method: Method
    technique: Technique


def rehearse(ports: Ports, engine: Engine, host: Host, plan: Plan | HostPlan, *, update_id: str) -> None:
    """Rehearse every shape that was not proven yet; raises Failed when one does not get through."""
    proven = _proven(ports)
    open_shapes = {digest: shape for digest, shape in _shapes(ports, host, plan).items() if digest not in proven}
    if not open_shapes:
        return
    longest = max(guest.budget_seconds for guest in plan.to_update)
    workdir = Path(ports.config.paths.state) / "rehearsal" / update_id
    guests = tuple(
        OrderedGuest(
            uuid=str(uuid.uuid4()),
            name=f"{NAME_PREFIX}{ports.token()}",
            before=shape.before,
            method=shape.method,
            technique=shape.technique,
            budget_seconds=longest,
        )
        for shape in open_shapes.values()
    )
    order = UpdateOrder(
        kind=OrderKind.REHEARSAL,
        component=plan.component,
        to=plan.to,
        guests=guests,
        pid=os.getpid(),
        rehearsed=tuple(open_shapes),
        workdir=str(workdir),
    )
    batches = begin(ports, engine, update_id, order)
    members = members_of(batches)
    try:
        for guest, shape in zip(guests, open_shapes.values(), strict=True):
            engine.tell(guest.uuid, "rehearse", "begun")
            own, emulator = str(workdir / guest.name), shape.before.emulator if shape.before else ""
            _conjure(ports, rehearsal_xml(shape.live_xml, guest.name, guest.uuid, own, emulator))
    except HostagentError as error:
        for member in members:
            member.end(Outcome.ROLLED_BACK, error)
    else:
        for batch in batches:
            batch.run()
    try:
        dismiss(ports, order)
    except HostagentError as error:  # libvirt is not there: recovery does it
        for member in members:
            member.end(Outcome.NEEDS_OPERATOR, error)
    ended = end_update(ports, update_id, batches)
    if ended is not Outcome.UPDATED:
        failed = next(member for member in members if member.outcome is not Outcome.UPDATED)
        if ended is Outcome.NEEDS_OPERATOR:
            raise NeedsOperator("rehearsing with a throw-away guest", found=failed.reason, hint="hostagent recover")
        raise Failed(
            "rehearsing with a throw-away guest" + (f" on QEMU {plan.to.version}" if plan.to else ""),
            expected="it to get through everything that a guest will",
            found=failed.reason,
            hint="no guest was touched",
        )


def dismiss(ports: Ports, order: UpdateOrder) -> None:
    """End the throw-away guests and remove their files; also after a crash."""
    for guest in order.guests:
        if guest.name.startswith(NAME_PREFIX):
            ports.libvirt.destroy(guest.uuid)
    sweep_up(ports, order)


def sweep_up(ports: Ports, order: UpdateOrder) -> None:
    """Remove the files of throw-away guests that are gone."""
    for guest in order.guests:
        if guest.name.startswith(NAME_PREFIX):
            ports.qemu.remove_log(guest.name)
    if order.workdir:
        shutil.rmtree(order.workdir, ignore_errors=True)


def _conjure(ports: Ports, guest: RehearsalGuest) -> None:
    for disk in guest.disks:
        path = Path(disk.path)
        path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        if disk.format == "raw":
            with path.open("xb") as file:
                file.truncate(disk.size)
        else:
            argv = ["qemu-img", "create", "-q", "-f", disk.format, str(path), str(disk.size)]
            processes.run(argv, within_seconds=30.0)
    ports.libvirt.start_transient(guest.xml)


def _shapes(ports: Ports, host: Host, plan: Plan | HostPlan) -> Mapping[str, _Shape]:
    """What would be proven -> the shape that needs it."""
    found = {}
    for guest in plan.to_update:
        method, technique = guest.method or Method.IN_PLACE, guest.technique or Technique.HANDOVER
        if not method.in_place:
            continue
        xml = ports.libvirt.live_xml(guest.uuid)
        found[_digest(host, plan, guest, xml)] = _Shape(xml, guest.before, method, technique)
    return found


def _digest(host: Host, plan: Plan | HostPlan, guest: GuestPlan, xml: str) -> str:
    emulators = (_tree(guest.before), _tree(plan.to or guest.before))
    parts = (
        __version__,
        shape_digest(xml),
        str(host.libvirt),
        host.kernel,
        f"{guest.method} by {guest.technique}",
        *emulators,
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _tree(tree: QemuTree | None) -> str:
    return f"{tree.emulator} {tree.version} {tree.package}" if tree else ""


def _proven(ports: Ports) -> frozenset[str]:
    return frozenset(
        str(shape)
        for update in fold(ports.journal.rows(kinds=(Kind.UPDATE_BEGUN, Kind.UPDATE_ENDED)))
        if update.outcome is Outcome.UPDATED and update.order.get("kind") == OrderKind.REHEARSAL
        for shape in _listed(update.order.get("rehearsed"))
    )


def _listed(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else ()
