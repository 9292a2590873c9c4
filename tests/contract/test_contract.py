"""What the steps of a handover rely on, asked of the fake and of the real QEMU and libvirt alike."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from hostagent.errors import Failed, HostagentError, OutcomeUnknown, Refused
from hostagent.facts import GuestState
from hostagent.hypervisor import MoveStatus, ProcessId, RunState
from hostagent.update.beside import launch_order
from hostagent.update.crossing import CROSSING_PARAMETERS, has_all_of_it, reconcile, switch
from hostagent.update.files import is_named, is_pinned
from hostagent.update.journal import Outcome
from hostagent.update.swap import KEEP_RAM, LOCK_LATE
from hostagent.update.taking_over import rewrite_record
from tests.contract.conftest import SECONDS, Stage, wait_for


def moved(stage: Stage) -> None:
    """The state has crossed; both QEMUs are there."""
    stage.detached()
    reconcile(stage.swap)
    switch(stage.swap)


def send(stage: Stage) -> None:
    """Only the crossing, with whatever is set."""
    receiving, sending = socket.socketpair()
    with receiving, sending:
        stage.new_monitor().receive_state(receiving.fileno())
        stage.old_monitor().send_state(sending.fileno())


# -- processes --------------------------------------------------------------------------------------------------


def test_a_process_is_known_by_its_start(stage: Stage) -> None:
    qemu, old = stage.ports.qemu, stage.prepared().old
    assert qemu.identify(old.pid) == old
    assert qemu.alive(old)
    assert not qemu.alive(ProcessId(old.pid, old.start_ticks + 1))
    assert qemu.wait_gone(ProcessId(old.pid, old.start_ticks + 1), 0.0)
    assert not qemu.wait_gone(old, 0.01)
    with pytest.raises(Failed, match="no such process"):
        qemu.identify(4194304)  # above any pid_max


def test_killed_any_number_of_times(stage: Stage) -> None:
    qemu = stage.beside().ports.qemu
    for _ in range(2):
        qemu.kill(stage.new, SECONDS)
        assert not qemu.alive(stage.new)
        assert qemu.wait_gone(stage.new, SECONDS)
    qemu.kill(ProcessId(stage.old.pid, stage.old.start_ticks + 1), SECONDS)  # another one that had this pid
    assert qemu.alive(stage.old)


def test_a_launch_that_is_never_told_to_go_leaves_no_process(stage: Stage) -> None:
    stage.prepared()
    heard, tells = os.pipe()
    child = os.fork()
    if child == 0:
        process = stage.ports.qemu.launch(launch_order(stage.swap.notes)).process
        os.write(tells, f"{process.pid} {process.start_ticks}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    pid, start = os.read(heard, 100).split()
    os.close(heard)
    os.close(tells)
    assert stage.ports.qemu.wait_gone(ProcessId(int(pid), int(start)), SECONDS)


def test_a_launch_that_is_given_up_leaves_no_process(stage: Stage) -> None:
    stage.prepared()
    with stage.ports.qemu.launch(launch_order(stage.swap.notes)) as launch:
        assert stage.ports.qemu.alive(launch.process)
    assert stage.ports.qemu.wait_gone(launch.process, SECONDS)


def test_both_map_the_same_ram(stage: Stage) -> None:
    pins = stage.beside().swap.notes.pins
    wanted = {(pin.device, pin.inode) for pin in pins}
    assert wanted
    for process in (stage.old, stage.new):
        assert wanted <= stage.ports.qemu.ram_inodes(process)


def test_the_new_one_s_surroundings_are_the_old_one_s(stage: Stage) -> None:
    assert stage.beside().ports.qemu.differences(stage.old, stage.new) == ()


def test_a_tap_is_left_as_it_was(stage: Stage) -> None:
    notes = stage.beside().swap.notes
    assert notes.taps
    assert stage.ports.qemu.tap_settings(stage.old, tuple(notes.taps)) == notes.taps
    stage.ports.qemu.kill(stage.new, SECONDS)
    stage.ports.qemu.put_taps(stage.old, notes.taps)
    assert stage.ports.qemu.tap_settings(stage.old, tuple(notes.taps)) == notes.taps


def test_log_pipes_are_carried_over(stage: Stage) -> None:
    notes = stage.detached().swap.notes
    (pipe,) = stage.ports.qemu.log_pipes(stage.old)
    assert pipe in notes.taken_over.values()
    (theirs,) = stage.new_monitor().inventory().fdsets.values()
    (ours,) = stage.old_monitor().inventory().fdsets.values()
    assert stage.ports.qemu.same_file(stage.old, ours, stage.new, theirs)
    assert stage.ports.qemu.same_file(stage.old, pipe, stage.new, theirs)


def test_its_names_go_with_one_that_leaves_and_stay_after_a_kill(stage: Stage) -> None:
    sockets = [Path(entry.temporary) for entry in stage.beside().swap.notes.sockets]
    assert all(path.exists() for path in sockets)
    stage.ports.qemu.kill(stage.new, SECONDS)
    assert all(path.exists() for path in sockets)


def test_one_that_leaves_unlinks_the_names_that_it_was_bound_to(stage: Stage) -> None:
    sockets = [Path(entry.temporary) for entry in stage.beside().swap.notes.sockets]
    stage.new_monitor().quit()
    assert stage.ports.qemu.wait_gone(stage.new, SECONDS)
    assert not any(path.exists() for path in sockets)


# -- monitors ---------------------------------------------------------------------------------------------------


def test_a_monitor_has_one_client(stage: Stage) -> None:
    path = stage.beside().swap.notes.new_monitor
    with stage.ports.qemu.monitor(path, SECONDS) as first:
        with pytest.raises(OutcomeUnknown):
            stage.ports.qemu.monitor(path, 0.3)
        assert first.run_state() is RunState.INMIGRATE
    with stage.ports.qemu.monitor(path, SECONDS) as second:
        assert second.run_state() is RunState.INMIGRATE


def test_libvirt_is_the_old_one_s_client(stage: Stage) -> None:
    with pytest.raises(OutcomeUnknown):
        stage.ports.qemu.monitor(Path(stage.prepared().swap.notes.monitor), 0.3)


def test_nobody_listens(stage: Stage) -> None:
    path = stage.beside().swap.notes.new_monitor
    with pytest.raises(Failed):
        stage.ports.qemu.monitor(path.with_name("nobody"), SECONDS)
    stage.ports.qemu.kill(stage.new, SECONDS)
    with pytest.raises(Failed):
        stage.ports.qemu.monitor(path, SECONDS)


def test_one_that_does_not_answer(stage: Stage) -> None:
    stage.beside()
    monitor = stage.new_monitor()
    stage.world.freeze(stage.new)
    try:
        with pytest.raises(OutcomeUnknown):
            monitor.run_state()
        stage.swap.close_monitors()
        with pytest.raises(OutcomeUnknown):
            stage.ports.qemu.monitor(stage.swap.notes.new_monitor, 0.3)
        stage.ports.qemu.kill(stage.new, SECONDS)  # a stopped process dies all the same
        assert not stage.ports.qemu.alive(stage.new)
    finally:
        with suppress(ProcessLookupError):
            stage.world.thaw(stage.new)


def test_one_that_has_no_time_left_to_answer(stage: Stage) -> None:
    monitor = stage.beside().new_monitor()
    monitor.answer_within(lambda: SECONDS)
    assert monitor.run_state() is RunState.INMIGRATE
    stage.world.freeze(stage.new)
    monitor.answer_within(lambda: 0.3)
    try:
        with pytest.raises(OutcomeUnknown, match=r"within 0\.3 s"):
            monitor.run_state()
    finally:
        stage.world.thaw(stage.new)


def test_one_that_dies_while_it_is_asked(stage: Stage) -> None:
    stage.beside()
    monitor = stage.new_monitor()
    stage.ports.qemu.kill(stage.new, SECONDS)
    with pytest.raises(Failed):
        monitor.run_state()
    monitor.quit()  # as it is meant to be


def test_capabilities_and_parameters(stage: Stage) -> None:
    stage.detached()
    for monitor in (stage.old_monitor(), stage.new_monitor()):
        before = monitor.capabilities()
        assert {*KEEP_RAM, *LOCK_LATE} <= set(before)
        monitor.set_capabilities({"x-ignore-shared": True})
        assert monitor.capabilities()["x-ignore-shared"] is True
        monitor.set_capabilities({"x-ignore-shared": False})
        assert monitor.capabilities()["x-ignore-shared"] is False
        with pytest.raises(Failed):
            monitor.set_capabilities({"no-such-capability": True})
        assert set(CROSSING_PARAMETERS) <= set(monitor.parameters())
        monitor.set_parameters({"downtime-limit": 1234})
        assert monitor.parameters()["downtime-limit"] == 1234


def test_libvirt_has_its_events_on(stage: Stage) -> None:
    assert stage.detached().old_monitor().capabilities()["events"] is True


def test_both_are_made_of_the_same(stage: Stage) -> None:
    stage.detached()
    old, new = stage.old_monitor().inventory(), stage.new_monitor().inventory()
    for part in ("devices", "block_nodes", "chardevs", "objects"):
        assert getattr(old, part) == getattr(new, part), part
    assert sorted(old.vcpu_threads) == sorted(new.vcpu_threads)
    assert not set(old.vcpu_threads.values()) & set(new.vcpu_threads.values())


def test_what_libvirt_will_ask_can_be_asked_before_and_after_the_load(stage: Stage) -> None:
    stage.detached()
    stage.new_monitor().reconnect_questions()
    reconcile(stage.swap)
    switch(stage.swap)
    stage.new_monitor().reconnect_questions()


# -- the crossing -----------------------------------------------------------------------------------------------


def test_the_state_crosses(stage: Stage) -> None:
    stage.detached()
    assert stage.old_monitor().run_state() is RunState.RUNNING
    assert stage.new_monitor().run_state() is RunState.INMIGRATE
    reconcile(stage.swap)
    switch(stage.swap)
    old, new = stage.old_monitor(), stage.new_monitor()
    assert (old.run_state(), old.move().status) == (RunState.POSTMIGRATE, MoveStatus.COMPLETED)
    assert (new.run_state(), new.move().status) == (RunState.PAUSED, MoveStatus.COMPLETED)
    assert old.move().ram_bytes < sum(pin.size for pin in stage.swap.notes.pins) // 8
    assert old.stopped_at() is not None


def test_the_new_one_goes_on(stage: Stage) -> None:
    moved(stage)
    rewrite_record(stage.swap)
    new = stage.new_monitor()
    new.resume(SECONDS)
    assert new.run_state() is RunState.RUNNING
    assert new.resumed_at() is not None
    new.resume(SECONDS)  # already so
    new.stop(SECONDS)
    assert new.run_state() is RunState.PAUSED
    new.resume(SECONDS)
    stage.ports.qemu.kill(stage.old, SECONDS)


def test_the_old_one_goes_on_once_the_new_one_is_gone(stage: Stage) -> None:
    moved(stage)
    stage.ports.qemu.kill(stage.new, SECONDS)
    old = stage.old_monitor()
    old.resume(SECONDS)
    assert old.run_state() is RunState.RUNNING


def test_a_crossing_is_seen_to_have_ended_by_whoever_comes_later(stage: Stage) -> None:
    """Recovery opens its own monitors, long after the events."""
    moved(stage)
    stage.swap.close_monitors()
    assert stage.old_monitor().wait_moved(SECONDS) is MoveStatus.COMPLETED
    assert stage.new_monitor().wait_moved(SECONDS) is MoveStatus.COMPLETED


def test_the_new_one_is_heard_out_when_the_old_one_ends_as_it_has_sent_everything(stage: Stage) -> None:
    """It still loads then, and is all that there is of the guest."""
    stage.detached()
    reconcile(stage.swap)
    send(stage)
    assert stage.old_monitor().wait_moved(SECONDS) is MoveStatus.COMPLETED
    stage.ports.qemu.kill(stage.old, SECONDS)
    assert has_all_of_it(stage.swap)
    assert stage.new_monitor().run_state() is RunState.PAUSED


def test_one_that_has_not_been_sent_everything_has_not_all_of_it(stage: Stage) -> None:
    stage.detached()
    reconcile(stage.swap)
    stage.ports.qemu.kill(stage.old, SECONDS)
    assert not has_all_of_it(stage.swap)


def test_the_state_crosses_once(stage: Stage) -> None:
    moved(stage)
    with pytest.raises(Failed):
        send(stage)


def test_the_disks_are_whose_that_runs(stage: Stage) -> None:
    """A loaded one has not taken them (late-block-activate); so the old one can go on, and then the new one cannot.

    Without that capability QEMU 7.2 takes them as it loads; 10.0 never does.
    """
    moved(stage)
    stage.old_monitor().resume(SECONDS)
    with pytest.raises(Failed, match="lock"):
        stage.new_monitor().resume(SECONDS)
    assert stage.new_monitor().run_state() is not RunState.RUNNING
    assert stage.old_monitor().run_state() is RunState.RUNNING


def test_one_that_would_not_share_the_ram_refuses_the_state(stage: Stage) -> None:
    """x-ignore-shared must be on on both sides; otherwise the new one leaves, and the old one goes on by itself."""
    stage.detached()
    stage.old_monitor().set_capabilities({**KEEP_RAM})
    stage.new_monitor().set_capabilities({"x-ignore-shared": False})
    send(stage)
    assert stage.ports.qemu.wait_gone(stage.new, SECONDS)
    old = stage.old_monitor()
    if old.wait_moved(SECONDS) is not MoveStatus.FAILED:
        old.resume(SECONDS)  # it had sent everything before the other one left
    wait_for(lambda: old.run_state() is RunState.RUNNING)
    assert stage.ports.qemu.last_words(stage.world.name, SECONDS)  # virtlogd may write them a moment later


def test_a_guest_that_its_owner_paused(stage: Stage) -> None:
    stage.world.pause()
    moved(stage)
    assert stage.old_monitor().run_state() is RunState.POSTMIGRATE
    assert stage.new_monitor().run_state() is RunState.PAUSED
    stage.ports.qemu.kill(stage.new, SECONDS)
    stage.attach()  # undone: libvirt takes it for what its record says
    guest = stage.ports.libvirt.guest(stage.world.uuid)
    assert guest is not None
    assert guest.state is GuestState.PAUSED_BY_OWNER


# -- libvirt ----------------------------------------------------------------------------------------------------


def test_libvirt_knows_the_guest(stage: Stage) -> None:
    guest = stage.ports.libvirt.guest(stage.world.uuid)
    assert guest is not None
    assert guest.process is not None
    assert (guest.name, guest.state) == (stage.world.name, GuestState.RUNNING)
    assert stage.ports.qemu.alive(stage.ports.qemu.identify(guest.process.pid))
    assert len(guest.ram_files) == 1
    assert stage.world.name in stage.ports.libvirt.live_xml(stage.world.uuid)
    assert stage.ports.libvirt.guest("00000000-0000-4000-8000-000000000000") is None


def test_guests_stay_while_the_daemon_is_away(stage: Stage) -> None:
    libvirt, daemon = stage.ports.libvirt, stage.ports.daemon
    before = libvirt.guest(stage.world.uuid)
    assert daemon.is_up()
    libvirt.disconnect()
    daemon.stop(SECONDS)
    assert not daemon.is_up()
    assert not libvirt.usable()
    with pytest.raises(Refused):
        libvirt.guest(stage.world.uuid)
    daemon.stop(SECONDS)  # already so
    daemon.start(SECONDS)
    daemon.start(SECONDS)
    libvirt.settled(stage.world.uuid)
    after = libvirt.guest(stage.world.uuid)
    assert before is not None
    assert after is not None
    assert (after.process, after.domain_id, after.state) == (before.process, before.domain_id, before.state)


def test_no_daemon_while_the_lock_is_held(stage: Stage) -> None:
    ports = stage.ports
    assert not ports.lock.acquire()  # the daemon has it
    ports.lock.release()
    ports.libvirt.disconnect()
    ports.daemon.stop(SECONDS)
    assert ports.lock.acquire()
    stage.world.start_daemon()
    assert not ports.libvirt.usable()
    assert ports.lock.held()
    with pytest.raises(HostagentError):
        ports.daemon.start(0.5)
    ports.lock.release()
    ports.daemon.start(SECONDS)
    assert ports.libvirt.usable()


def test_a_daemon_that_comes_early_sees_a_guest_that_migrates(stage: Stage) -> None:
    moved(stage)
    stage.swap.close_monitors()
    stage.ports.lock.release()
    stage.world.start_daemon()
    stage.ports.libvirt.settled(stage.world.uuid)
    guest = stage.ports.libvirt.guest(stage.world.uuid)
    assert guest is not None
    assert (guest.state, guest.state_reason) == (GuestState.PAUSED_OTHERWISE, "migration")
    with pytest.raises(OutcomeUnknown):
        stage.ports.qemu.monitor(Path(stage.swap.notes.monitor), 0.3)


def test_a_record_of_a_dead_process_is_cleaned_up_and_the_pin_keeps_the_ram(stage: Stage) -> None:
    stage.detached()
    (pin,) = stage.swap.notes.pins
    stage.ports.qemu.kill(stage.new, SECONDS)
    stage.ports.qemu.kill(stage.old, SECONDS)
    stage.ports.lock.release()
    stage.world.start_daemon()
    wait_for(lambda: not Path(stage.swap.notes.record).exists())
    assert not is_named(pin)
    assert is_pinned(pin)
    guest = stage.ports.libvirt.guest(stage.world.uuid)
    assert guest is not None
    assert guest.state is GuestState.SHUT_OFF


def test_libvirt_comes_back_to_the_process_that_the_record_names(stage: Stage) -> None:
    member = stage.whole_update()
    assert member.outcome is Outcome.UPDATED, member.reason
    guest = stage.ports.libvirt.guest(stage.world.uuid)
    assert guest is not None
    assert guest.process is not None
    assert (guest.process.pid, guest.state) == (stage.new.pid, GuestState.RUNNING)
    assert guest.definition.emulator == stage.world.other.emulator
    assert guest.qemu == stage.world.other
    assert not stage.ports.qemu.alive(stage.old)


def test_an_agent_answers_after_the_update(stage: Stage) -> None:
    member = stage.whole_update()
    assert member.outcome is Outcome.UPDATED, member.reason
    with stage.ports.libvirt.agent(stage.world.uuid) as agent:
        assert isinstance(agent.ask("guest-get-time", None, 10.0), int)
