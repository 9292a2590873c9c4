"""Why a guest or a host cannot be updated in place: one small function per reason, pure.

Each looks at facts and gives a Blocker, several, or None; `guest_blockers` and `host_blockers` ask them all.
"""

from collections.abc import Callable, Iterator, Mapping

from hostagent.arguments.command_line import judged
from hostagent.arguments.known_limits import SHARED_FILE_HINT
from hostagent.facts import Guest, GuestState, Host, RamBacking, Version
from hostagent.plan import Blocker, Reason
from hostagent.planning.device_checks import marked_devices, refused_devices

Found = Blocker | tuple[Blocker, ...] | None

_RESTART = "live-migrate or restart the guest"


def guest_blockers(guest: Guest) -> tuple[Blocker, ...]:
    """Every reason why the guest cannot be handed over; none twice."""
    return _all(check(guest) for check in GUEST_CHECKS)


def host_blockers(host: Host) -> tuple[Blocker, ...]:
    """Every reason why no guest of the host can be updated in place."""
    return _all(check(host) for check in HOST_CHECKS)


def handover_blockers(host: Host) -> tuple[Blocker, ...]:
    """Every further reason why none can be handed over."""
    return _all(check(host) for check in HANDOVER_HOST_CHECKS)


def _all(found: Iterator[Found]) -> tuple[Blocker, ...]:
    several = (item if isinstance(item, tuple) else (item,) for item in found)
    return tuple(dict.fromkeys(blocker for some in several for blocker in some if blocker is not None))


# -- the guest itself ----------------------------------------------------------------------------------------


def state(guest: Guest) -> Found:
    """Only what runs, or what its owner paused, can be found again as it was."""
    if guest.state in (GuestState.RUNNING, GuestState.PAUSED_BY_OWNER):
        return None
    why = f" ({guest.state_reason})" if guest.state_reason else ""
    return Blocker(
        Reason.STATE,
        "a guest that runs, or is paused by its owner",
        f"{guest.state}{why}",
        "see to its state first (virsh domstate --reason)",
    )


def process(guest: Guest) -> Found:
    """An active guest has a QEMU that we found and know to be this guest's."""
    if guest.process is not None or not guest.state.active:
        return None
    return Blocker(
        Reason.PROCESS,
        "a QEMU process",
        "none that libvirt's pid file leads to",
        "see whether the guest's QEMU runs; restart libvirtd if libvirt is wrong about it",
    )


def binary(guest: Guest) -> Blocker | None:
    """The version that runs now must be on the host: the rehearsal starts it, and going back may need it."""
    if guest.process is None or guest.qemu is not None:
        return None
    deleted = ", deleted since" if guest.process.exe_deleted else ""
    return Blocker(
        Reason.BINARY,
        "a QEMU that is installed on the host",
        f"{guest.process.exe}{deleted}",
        f"add the packages of the version that it runs (hostagent qemu fetch or add), or {_RESTART}",
    )


def job(guest: Guest) -> Found:
    """Stopping libvirtd would abort it."""
    if not guest.job:
        return None
    return Blocker(Reason.JOB, "no job", guest.job, "wait for it to end, or abort it (virsh domjobinfo)")


def checkpoints(guest: Guest) -> Found:
    """Their bitmaps live in QEMU's memory until it quits."""
    if not guest.checkpoints:
        return None
    return Blocker(
        Reason.FEATURE,
        "no checkpoints",
        f"{guest.checkpoints}",
        "delete them (virsh checkpoint-delete); the next backup is a full one",
    )


def security_label(guest: Guest) -> Found:
    """The new QEMU would run unconfined, or be refused its files."""
    if not guest.security_label or guest.label_is_taken:
        return None
    return Blocker(
        Reason.SECURITY_LABEL,
        "a process without an enforced security label",
        guest.security_label,
        "not taken by this version: " + _RESTART,
    )


# -- memory --------------------------------------------------------------------------------------------------

_RAM: Mapping[RamBacking, Reason] = {
    RamBacking.PRIVATE_FILE: Reason.RAM_NOT_SHARED,
    RamBacking.HUGE_PAGES: Reason.RAM_FILE,
}


def ram_backing(guest: Guest) -> Found:
    """The new QEMU maps the same file, or RAM without a name is copied into one: what is neither is lost."""
    reason = _RAM.get(guest.definition.ram)
    if reason is None:
        return None
    return Blocker(reason, "RAM in a shared file", f"{guest.definition.ram} RAM", SHARED_FILE_HINT)


def ram_discard(guest: Guest) -> Found:
    """The old QEMU would empty the shared file as it quits."""
    if not guest.definition.ram_discard:
        return None
    return Blocker(
        Reason.RAM_DISCARD,
        "RAM that its QEMU keeps as it quits",
        "<discard/> in <memoryBacking>",
        "remove <discard/> and restart the guest",
    )


def ram_files(guest: Guest) -> Found:
    """Each backend's file must still have its name: that is what the new QEMU opens."""
    if guest.process is None:
        return None
    seen = {file.backend for file in guest.ram_files}
    return tuple(
        Blocker(Reason.RAM_FILE, f"the RAM file {backend.path}", "no such file", _RESTART)
        for backend in judged(guest.arguments).ram_backends
        if backend.id not in seen
    )


# -- what the argument list and the stream do not carry ------------------------------------------------------


def on_reboot(guest: Guest) -> Found:
    """libvirt tells QEMU by set-action once, at start (qemuProcessSetupLifecycleActions); the new one is told too."""
    if guest.definition.on_reboot in ("restart", "destroy", ""):
        return None
    return Blocker(
        Reason.SETTING_NOT_CARRIED,
        "<on_reboot> restart or destroy",
        guest.definition.on_reboot,
        f"a later version carries it: {_RESTART}",
    )


def features(guest: Guest) -> Found:
    """Elements of the definition that nobody knows how to carry."""
    return tuple(
        Blocker(Reason.FEATURE, "only elements that are known to be carried", f"<{name}>", _RESTART)
        for name in sorted(guest.definition.features)
    )


def options(guest: Guest) -> Found:
    """The argument list against what has been tested; what another check names better is left to it."""
    if guest.process is None:
        return None
    named = {(found.reason, found.expected) for found in _all(check(guest) for check in _NAMED_BETTER)}
    found = judged(guest.arguments).blockers
    return tuple(blocker for blocker in found if (blocker.reason, blocker.expected) not in named)


def changed_since_boot(guest: Guest) -> Found:
    """The new QEMU starts from the old one's arguments, which are the guest as it booted."""
    hint = "undo the change, or restart the guest"
    return tuple(Blocker(Reason.CHANGED_SINCE_BOOT, item.expected, item.found, hint) for item in guest.drift)


# -- the host ------------------------------------------------------------------------------------------------


def lock_manager(host: Host) -> Found:
    """virtlockd and sanlock know a guest by its pid, and may kill the one they do not know."""
    if not host.lock_manager:
        return None
    return Blocker(
        Reason.LOCK_MANAGER,
        "no lock manager",
        host.lock_manager,
        "remove lock_manager from qemu.conf, restart libvirtd and the guests",
    )


def reconnect_hook(host: Host) -> Blocker | None:
    """A hook that fails makes libvirt kill the guest as it reconnects."""
    if not host.reconnect_hook:
        return None
    return Blocker(
        Reason.HOST,
        "no hook that runs as libvirt reconnects",
        "a qemu hook in /etc/libvirt/hooks",
        "one that fails kills the guest: move it away for the update",
    )


def machined(host: Host) -> Found:
    """From systemd 255 on a restart of machined ends a guest whose first process is gone."""
    if host.machined is None or host.machined < Version(255, 0):
        return None
    return Blocker(
        Reason.HOST,
        "systemd-machined before 255, or none",
        f"{host.machined.major}",
        "not taken by this version: live-migrate or restart the guests",
    )


def system_libvirt(host: Host) -> Found:
    """A session's libvirt runs guests as its user, with other folders and no taps."""
    if host.libvirt_uri == "qemu:///system":
        return None
    return Blocker(Reason.HOST, "libvirt's qemu:///system", host.libvirt_uri)


GUEST_CHECKS: tuple[Callable[[Guest], Found], ...] = (
    state,
    process,
    binary,
    job,
    ram_backing,
    ram_discard,
    ram_files,
    refused_devices,
    marked_devices,
    on_reboot,
    features,
    checkpoints,
    security_label,
    options,
    changed_since_boot,
)
HOST_CHECKS: tuple[Callable[[Host], Found], ...] = (lock_manager, system_libvirt)
HANDOVER_HOST_CHECKS: tuple[Callable[[Host], Found], ...] = (reconnect_hook, machined)
_NAMED_BETTER = (ram_backing, ram_discard, refused_devices)
