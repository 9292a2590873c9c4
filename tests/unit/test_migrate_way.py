"""Where a guest could migrate to, and why not."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampled import ALL, TREE, guest, within

from hostagent.facts import Destinations, Device, Guest, GuestState, Peer, QemuTree, RamBacking, Version
from hostagent.plan import Method, Reason, Way
from hostagent.planning.guest_policy import Policies
from hostagent.planning.migrate_way import OVERHEAD_BYTES, Leaving, migrate_way
from hostagent.planning.prediction import Past
from hostagent.policy import Allowed, PolicyPart

NEW = QemuTree("10.0.2", Version(10, 0, 2), "1:10.0.2", "/q/10")
ALLOWED = Policies(asked=PolicyPart(allow=frozenset(Allowed), budget_seconds=30.0))
EMULATED = guest("q35-plain")
PLAIN = dataclasses.replace(EMULATED, definition=dataclasses.replace(EMULATED.definition, virtualisation="kvm"))
IMAGES = "/var/lib/libvirt/images"


def peer(name: str = "b", **changed: Any) -> Peer:
    """One that takes the plain guest."""
    plain = Peer(
        name=name,
        uri=f"qemu+tls://{name}/system",
        shared=(IMAGES,),
        libvirt=Version(9, 0),
        qemu=TREE.version,
        machines=frozenset({(PLAIN.definition.virtualisation, PLAIN.definition.machine)}),
        memory_left=64 << 30,
        networks=frozenset({"default"}),
    )
    return dataclasses.replace(plain, **changed)


def way(
    one: Guest = PLAIN,
    *peers: Peer,
    to: QemuTree | None = NEW,
    policies: Policies = ALLOWED,
    home: str = "qemu+tls://a/system",
    comes_back: bool = True,
    leaving: tuple[Leaving, ...] = (),
    past: Past | None = None,
    lossy: bool = False,
) -> Way:
    where = Destinations(peers, comes_back, home, lossy_emulation=lossy)
    return migrate_way(one, policies.of(one), where, past, to=to, leaving=leaving)


def reasons(found: Way) -> list[Reason]:
    return [blocker.reason for blocker in found.blockers]


def changed(**values: Any) -> Guest:
    return dataclasses.replace(PLAIN, **values)


def defined(**values: Any) -> Guest:
    return changed(definition=dataclasses.replace(PLAIN.definition, **values))


def test_a_guest_goes_to_the_first_peer_that_it_fits() -> None:
    found = way(PLAIN, peer("b", fault="no route to host"), peer("c"), peer("d"))
    assert (found.method, found.technique, found.peer, found.blockers) == (Method.LIVE_MIGRATE, None, "c", ())


def test_a_peer_with_the_wanted_qemu_comes_first() -> None:
    assert way(PLAIN, peer("b"), peer("c", qemu=NEW.version)).peer == "c"
    assert way(PLAIN, peer("b"), peer("c", qemu=NEW.version), to=None).peer == "b"


def test_it_is_for_the_owner_to_allow() -> None:
    found = way(PLAIN, peer(), policies=within(30.0))
    assert reasons(found) == [Reason.POLICY]
    assert "--allow in-place,in-place-copy,live-migrate" in found.blockers[0].hint


def test_without_peers_there_is_nowhere_to_go() -> None:
    found = way()
    assert [str(blocker) for blocker in found.blockers] == [
        "expected a host to migrate to, found no [[peer]] in the settings (hint: docs/migration.md)"
    ]
    assert found.peer == ""


def test_the_way_back_has_to_be_known() -> None:
    found = way(PLAIN, peer(), home="")
    assert [blocker.hint for blocker in found.blockers] == ["set it, or return = false in [migrate]"]
    assert way(PLAIN, peer(qemu=NEW.version), home="", comes_back=False).blockers == ()


@pytest.mark.parametrize(
    ("one", "reason", "found"),
    [
        (changed(state=GuestState.PAUSED_BY_OWNER), Reason.STATE, "paused by its owner"),
        (changed(state=GuestState.PM_SUSPENDED), Reason.STATE, "suspended by the guest"),
        (changed(persistent=False), Reason.STATE, "a transient one"),
        (changed(job="a block job on vda"), Reason.JOB, "a block job on vda"),
        (changed(snapshots=2), Reason.FEATURE, "2"),
        (changed(checkpoints=1), Reason.FEATURE, "1"),
        (defined(ram=RamBacking.HUGE_PAGES), Reason.RAM_FILE, "huge pages RAM"),
        (defined(ram=RamBacking.UNKNOWN), Reason.RAM_FILE, "unknown RAM"),
        (defined(own_firmware=True), Reason.FEATURE, "<nvram>, or pflash"),
        (defined(features=frozenset({"numatune"})), Reason.FEATURE, "<numatune>"),
    ],
)
def test_what_keeps_a_guest_on_its_host(one: Guest, reason: Reason, found: str) -> None:
    blockers = way(one, peer()).blockers
    assert [(blocker.reason, blocker.found) for blocker in blockers] == [(reason, found)]


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        (Device("hostdev", "pci", "hostdev0"), Reason.PASSTHROUGH),
        (Device("disk", "nvme", "d0", marks=frozenset({"nvme"})), Reason.PASSTHROUGH),
        (Device("interface", "vhostuser", "net9", marks=frozenset({"vhost-user"})), Reason.VHOST_USER),
        (Device("filesystem", "virtiofs", "fs0"), Reason.VIRTIOFS),
        (Device("filesystem", "mount", "fs0"), Reason.OPTION),
        (Device("tpm", "emulator", "tpm0"), Reason.TPM),
        (Device("graphics", "spice", ""), Reason.SPICE),
        (Device("channel", "spicevmc", "channel1"), Reason.SPICE),
        (Device("graphics", "egl-headless", ""), Reason.GRAPHICS),
        (Device("interface", "user", "net1", marks=frozenset({"user"})), Reason.USER_NETWORK),
        (Device("interface", "ethernet", "net1"), Reason.OPTION),
        (Device("interface", "direct", "net1"), Reason.OPTION),
        (Device("disk", "vhostuser", "d0", marks=frozenset({"vhost-user"})), Reason.VHOST_USER),
        (Device("disk", "volume", "d0"), Reason.STORAGE),
        (Device("disk", "dir", "d0"), Reason.STORAGE),
        (Device("disk", "file", "d0", marks=frozenset({"shareable"})), Reason.OPTION),
        (Device("disk", "file", "d0", marks=frozenset({"transient"})), Reason.OPTION),
        (Device("shmem", "ivshmem-plain", "shmem0"), Reason.OPTION),
        (Device("redirdev", "tcp", "redir0"), Reason.OPTION),
        (Device("something-new", "", ""), Reason.OPTION),
    ],
)
def test_devices_that_do_not_migrate_or_that_nobody_tried(device: Device, reason: Reason) -> None:
    one = defined(devices=(*PLAIN.definition.devices, device))
    assert reasons(way(one, peer())) == [reason]


@pytest.mark.parametrize(
    ("other", "reason", "found"),
    [
        ({"fault": "it is this host itself"}, Reason.PEER, "it is this host itself"),
        ({"qemu": None}, Reason.PEER_VERSION, "that one is not known"),
        ({"qemu": Version(7, 1)}, Reason.PEER_VERSION, "7.1.0"),
        ({"qemu": Version(10, 1)}, Reason.PEER_VERSION, "10.1.0"),
        ({"machines": frozenset({("qemu", "pc-q35-7.1"), ("kvm", "pc-q35-7.1")})}, Reason.PEER_MACHINE, None),
        ({"machines": frozenset({("other", "pc-q35-7.2")})}, Reason.PEER_MACHINE, None),
        ({"misfits": ((PLAIN.uuid, "no avx512f"),)}, Reason.PEER_CPU, "no avx512f"),
        ({"memory_left": PLAIN.definition.memory}, Reason.PEER_ROOM, None),
        ({"memory_left": -5}, Reason.PEER_ROOM, "0 MiB"),
        ({"max_guests": 1, "guests": frozenset({("x", "u")})}, Reason.PEER_ROOM, "1"),
        ({"guests": frozenset({(PLAIN.name, "another")})}, Reason.PEER, f"{PLAIN.name} (another)"),
        ({"guests": frozenset({("another", PLAIN.uuid)})}, Reason.PEER, f"another ({PLAIN.uuid})"),
    ],
)
def test_what_a_peer_may_lack(other: dict[str, Any], reason: Reason, found: str | None) -> None:
    blockers = way(PLAIN, peer(**other)).blockers
    assert [blocker.reason for blocker in blockers] == [reason]
    assert found in (None, blockers[0].found)
    assert "b" in blockers[0].expected


def test_a_peer_of_another_guest_s_misfit_takes_this_one() -> None:
    assert way(PLAIN, peer(misfits=(("another", "no avx"),))).blockers == ()


@pytest.mark.parametrize("folder", ["/var/lib/libvirt/image", "/var/lib/libvirt/images2", "/srv"])
def test_every_file_of_a_guest_is_on_both_hosts(folder: str) -> None:
    blockers = way(PLAIN, peer(shared=(folder,))).blockers
    assert {blocker.reason for blocker in blockers} == {Reason.STORAGE}
    assert len(blockers) == len(PLAIN.definition.host_files)
    assert way(PLAIN, peer(shared=(folder, "/var/lib"))).blockers == ()


def test_a_network_of_libvirt_s_has_to_be_there() -> None:
    card = Device("interface", "network", "net5", source="guests")
    one = defined(devices=(card,))
    assert reasons(way(one, peer())) == [Reason.PEER_NETWORK]
    assert way(one, peer(networks=frozenset({"guests"}))).blockers == ()


def test_it_comes_back_only_from_a_qemu_that_is_not_newer() -> None:
    newer = peer(qemu=Version(10, 1))
    assert reasons(way(PLAIN, newer)) == [Reason.PEER_VERSION]
    assert "return = false" in way(PLAIN, newer).blockers[0].hint
    assert way(PLAIN, newer, comes_back=False).blockers == ()


def test_to_stay_is_an_update_only_with_the_wanted_qemu() -> None:
    assert reasons(way(PLAIN, peer(), comes_back=False)) == [Reason.PEER_VERSION]
    assert way(PLAIN, peer(), comes_back=False, to=None).blockers == ()


def test_those_who_go_first_take_room() -> None:
    memory = PLAIN.definition.memory
    tight = peer(memory_left=2 * (memory + OVERHEAD_BYTES) - 1)
    assert way(PLAIN, tight).blockers == ()
    full = way(PLAIN, tight, leaving=(Leaving("b", memory),))
    assert reasons(full) == [Reason.PEER_ROOM]
    assert "with the 1 that go there before it" in full.blockers[0].found
    assert way(PLAIN, tight, leaving=(Leaving("c", memory),)).blockers == ()
    assert reasons(way(PLAIN, peer(max_guests=2), leaving=(Leaving("b", 1), Leaving("b", 1)))) == [Reason.PEER_ROOM]


def test_with_no_peer_that_it_fits_each_one_s_reasons_are_given() -> None:
    found = way(PLAIN, peer("b", fault="dead"), peer("c", memory_left=0), peer("d", shared=(), networks=frozenset()))
    assert [blocker.reason for blocker in found.blockers][:2] == [Reason.PEER, Reason.PEER_ROOM]
    assert found.peer == ""


def test_a_pause_is_predicted_from_its_own_migrations() -> None:
    first = way(PLAIN, peer(), past=Past())
    assert first.predicted is not None
    assert (first.predicted.pause_seconds, first.predicted.measured) == (2.0, 0)
    past = Past(pauses={PLAIN.uuid: [9.0]}, migrations={PLAIN.uuid: [0.2, 0.4], "other": [7.0]})
    known = way(PLAIN, peer(), past=past)
    assert known.predicted is not None
    assert (known.predicted.pause_seconds, known.predicted.of_itself) == (0.4, True)
    tight = Policies(asked=PolicyPart(allow=frozenset(Allowed), budget_seconds=0.3))
    assert reasons(way(PLAIN, peer(), past=past, policies=tight)) == [Reason.BUDGET]


@given(
    name=st.sampled_from(ALL),
    peers=st.lists(
        st.builds(
            peer,
            st.sampled_from("bcdef"),
            fault=st.sampled_from(["", "", "dead"]),
            qemu=st.sampled_from([None, Version(7, 2), TREE.version, NEW.version, Version(11, 0)]),
            memory_left=st.integers(0, 2 << 30),
            max_guests=st.integers(0, 2),
            shared=st.sampled_from([(), (IMAGES,), ("/",)]),
        ),
        max_size=4,
        unique_by=lambda one: one.name,
    ),
    allow=st.frozensets(st.sampled_from(Allowed)),
    comes_back=st.booleans(),
    leaving=st.lists(st.builds(Leaving, st.sampled_from("bcdef"), st.integers(0, 1 << 30)), max_size=3).map(tuple),
)
def test_any_guest_goes_to_a_peer_that_it_fits_or_hears_why_not(
    name: str,
    peers: list[Peer],
    allow: frozenset[Allowed],
    comes_back: bool,
    leaving: tuple[Leaving, ...],
) -> None:
    one = guest(name)
    policies = Policies(asked=PolicyPart(allow=allow, budget_seconds=30.0))
    found = way(one, *peers, policies=policies, comes_back=comes_back, leaving=leaving)
    if found.blockers:
        assert all(blocker.expected and blocker.found for blocker in found.blockers)
        return
    chosen = next(one for one in peers if one.name == found.peer)
    coming = [other for other in leaving if other.peer == chosen.name]
    assert Allowed.LIVE_MIGRATE in allow
    assert not chosen.fault
    assert chosen.qemu is not None and chosen.qemu >= TREE.version
    assert chosen.qemu <= NEW.version if comes_back else chosen.qemu >= NEW.version
    assert one.definition.memory + sum(other.memory for other in coming) < chosen.memory_left
    assert not chosen.max_guests or len(coming) < chosen.max_guests


def test_an_emulating_qemu_that_forgets_writes_is_not_trusted_with_a_guest_that_runs() -> None:
    machines = frozenset({("qemu", EMULATED.definition.machine)})
    old = peer(machines=machines)
    assert EMULATED.loses_writes
    found = way(EMULATED, old)
    assert reasons(found) == [Reason.BINARY]
    assert "lossy_emulation" in found.blockers[0].hint
    assert way(EMULATED, old, lossy=True).blockers == ()
    later = dataclasses.replace(EMULATED, qemu=dataclasses.replace(TREE, version=Version(9, 0)))
    assert way(later, peer(machines=machines, qemu=Version(9, 0)), to=NEW).blockers == ()


def test_of_a_qemu_that_nobody_knows_the_worst_is_believed() -> None:
    unknown = dataclasses.replace(EMULATED, qemu=None)
    assert Reason.BINARY in reasons(way(unknown, peer()))
    assert not dataclasses.replace(PLAIN, qemu=None).loses_writes
