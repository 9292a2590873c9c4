"""Why a guest cannot be updated by a reboot: shut down in order, and started anew. Pure.

It starts from its persistent definition, as after any shutdown: what was changed in the live one alone is gone then.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable

from hostagent.facts import Guest, GuestState
from hostagent.plan import Blocker, Method, Reason, Way
from hostagent.planning.checks import job, process
from hostagent.planning.guest_policy import GuestPolicy, policy_blockers

AGENT_CHANNEL = "org.qemu.guest_agent.0"

Found = Blocker | tuple[Blocker, ...] | None


def reboot_way(guest: Guest, own: GuestPolicy) -> Way:
    """How the guest would be rebooted, and every reason why it cannot. It is no pause, so that none is predicted."""
    found = [*policy_blockers(guest, own, Method.REBOOT)]
    for check in _CHECKS:
        blockers = check(guest)
        found += blockers if isinstance(blockers, tuple) else [blockers] if blockers else []
    if (unproven := boot_proof(guest, own)) is not None:
        found.append(unproven)
    return Way(Method.REBOOT, None, None, tuple(dict.fromkeys(found)))


def runs(guest: Guest) -> Blocker | None:
    """Only a guest that runs can shut itself down."""
    if guest.state is GuestState.RUNNING:
        return None
    why = f" ({guest.state_reason})" if guest.state_reason else ""
    return Blocker(
        Reason.STATE, "a guest that runs, for a reboot", f"{guest.state}{why}", "virsh resume, or shut it down yourself"
    )


def persistent(guest: Guest) -> Blocker | None:
    """A transient guest is gone once it is shut down."""
    if guest.persistent:
        return None
    return Blocker(Reason.STATE, "a persistent guest, for a reboot", "a transient one", "virsh define")


def managed_save(guest: Guest) -> Blocker | None:
    """Its next start would load a state that is past; or, booted without that, make the state one of other disks."""
    if not guest.managed_save:
        return None
    return Blocker(
        Reason.STATE,
        "no saved state of it, for a reboot",
        "one, from before it was started",
        f"virsh managedsave-remove {guest.uuid} gives it up",
    )


def on_poweroff(guest: Guest) -> Blocker | None:
    """Anything else has libvirt start it anew in the same QEMU, or leaves that there."""
    if guest.definition.on_poweroff == "destroy":
        return None
    return Blocker(
        Reason.LIFECYCLE,
        "<on_poweroff> destroy, for a reboot",
        guest.definition.on_poweroff,
        f"virsh set-lifecycle-action {guest.uuid} poweroff destroy --live --config",
    )


def boot_proof(guest: Guest, own: GuestPolicy) -> Blocker | None:
    """Nobody could say whether it came up."""
    if own.policy.boot_tcp or any(device.detail == AGENT_CHANNEL for device in guest.definition.devices):
        return None
    return Blocker(
        Reason.BOOT_PROOF,
        "a guest agent's channel, or boot-tcp in its policy, for a reboot",
        "neither",
        f"give it an agent, or say what answers once it has booted: hostagent guest set {shlex.quote(guest.name)} "
        "--boot-tcp HOST:PORT",
    )


_CHECKS: tuple[Callable[[Guest], Found], ...] = (runs, process, persistent, job, managed_save, on_poweroff)
