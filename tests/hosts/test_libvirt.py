"""What libvirt does with a guest that migrates and is disturbed, which hostagent relies on.

With libvirt 9.0, QEMU 7.2, and keepalives of both hosts as in tests/bench/listening.py:

- Disks in a folder that both see, and that is no network file system, are unsafe for it (VIR_ERR_MIGRATE_UNSAFE)
  without VIR_MIGRATE_UNSAFE. In such a one the source may give a disk back to root once the guest has left; a guest
  that arrived paused then cannot open it ("Permission denied", see tests/bench/listening.py). Not so on what libvirt
  knows to be shared: NFS and the like, and with 11.3 the shared_filesystems of qemu.conf.
- The log of a console is begun anew on the target (virtlogd, without append).
- With VIR_MIGRATE_PAUSED the guest arrives paused by the user (3, 1), persistent, without a lock on its disk.
- When the answer to the last call is lost the source takes the migration for failed, and resumes the guest.
- A network that drops everything is noticed after (count + 1) * interval seconds: 5 to 6 with 5 and 1, half a minute
  with libvirt's own 5 and 5. When only the RAM's connection is dropped nothing fails within a minute and more, until
  somebody aborts the job.
- A source daemon that ended in the middle goes on with the guest when it starts again; one that ended after RAM and
  state were over leaves it paused (3, 2). The target then has it whole, or ends what came if it was not told.
- jobStats(COMPLETED) on the target has downtime, downtime_net and time_elapsed in ms; that downtime ends with the
  arrival, also with VIR_MIGRATE_PAUSED.
"""

import os
import signal
import subprocess
import time
from concurrent.futures import Future

import libvirt
import pytest

from tests.bench.guest_spec import GUEST_FILES
from tests.bench.host import LIBVIRTD_PID
from tests.bench.lab import Lab
from tests.bench.link import A, B, Traffic
from tests.bench.two_hosts import MIGRATE_URIS, URIS, TwoHosts
from tests.hosts.guests import LIVE, PAUSED, TLS, TRAVELLER, Standing, Travelling

SLOW = 200_000_000
"""Bits a second: its RAM takes some seconds."""
HURRIED = 4 * SLOW
MIGRATING = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION)
ARRIVED = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER)
RUNNING = libvirt.VIR_DOMAIN_RUNNING


def is_locked(hosts: TwoHosts) -> bool:
    """Whether a QEMU, wherever, has its disk for itself."""
    return "lock" in hosts.b.run(["qemu-img", "info", str(TRAVELLER.disk_path)]).stderr


def ended_badly(call: Future[None]) -> None:
    with pytest.raises(libvirt.libvirtError):
        call.result()


def is_at_home(travelling: Travelling) -> None:
    """With everything, and the other host has forgotten it."""
    travelling.wait_until(lambda: not travelling.is_known_on(B))
    assert travelling.runs_on() == [A]
    with travelling.proof(A) as proof:
        assert proof.check().good


def test_a_folder_that_both_see_is_unsafe_for_it(hosts: TwoHosts, standing: Standing) -> None:
    with standing.guest(TRAVELLER) as travelling:
        with pytest.raises(libvirt.libvirtError) as raised:
            travelling.migrate(A, B, LIVE & ~libvirt.VIR_MIGRATE_UNSAFE | TLS)
        assert raised.value.get_error_code() == libvirt.VIR_ERR_MIGRATE_UNSAFE
        is_at_home(travelling)


def test_it_arrives_paused_with_no_lock_on_its_disk(hosts: TwoHosts, standing: Standing) -> None:
    with standing.guest(TRAVELLER) as travelling:
        travelling.migrate(A, B, LIVE | TLS | PAUSED)
        assert (travelling.state(A), travelling.state(B)) == (None, ARRIVED)
        assert not is_locked(hosts)
        with travelling.on(B) as domain:
            told = domain.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)
            assert told["downtime"] > 0
            domain.resume()
        assert is_locked(hosts)
        with travelling.proof(B) as proof:
            assert proof.check().good


def test_its_job_is_aborted_by_anybody(hosts: TwoHosts, standing: Standing) -> None:
    with standing.guest(TRAVELLER) as travelling:
        hosts.link.slow(SLOW)
        with travelling.migrating() as call:
            with travelling.on(A) as domain:
                domain.abortJob()
            ended_badly(call)
        is_at_home(travelling)


def test_who_asked_for_it_is_not_needed(hosts: TwoHosts, standing: Standing) -> None:
    flags = ["--live", "--p2p", "--tls", "--persistent", "--undefinesource", "--unsafe"]
    with standing.guest(TRAVELLER) as travelling:
        hosts.link.slow(HURRIED)
        asking = subprocess.Popen(["virsh", "migrate", *flags, TRAVELLER.name, URIS[B], MIGRATE_URIS[B]])
        travelling.wait_until(lambda: travelling.moved_bytes() > 16 << 20)
        asking.kill()
        asking.wait()
        travelling.wait_until(lambda: not travelling.is_known_on(A))
        assert travelling.runs_on() == [B]


def test_it_stays_when_the_network_is_cut(hosts: TwoHosts, standing: Standing) -> None:
    with standing.guest(TRAVELLER) as travelling:
        hosts.link.slow(SLOW)
        with travelling.migrating() as call:
            hosts.link.cut()
            began = time.monotonic()
            ended_badly(call)
            print(f"noticed after {time.monotonic() - began:.1f} s")
        is_at_home(travelling)


def test_it_stays_when_the_target_loses_its_power(hosts: TwoHosts, standing: Standing) -> None:
    with standing.guest(TRAVELLER) as travelling:
        hosts.link.slow(SLOW)
        with travelling.migrating() as call:
            hosts.b.kill()
            ended_badly(call)
        hosts.b.power_on()
        is_at_home(travelling)


def lose_the_answer(travelling: Travelling, flags: int) -> None:
    """The target has it whole, says so, and is not heard."""
    hosts = travelling.hosts
    hosts.link.slow(HURRIED)
    with travelling.migrating(flags) as call:
        travelling.wait_until(lambda: travelling.state(A) == MIGRATING)
        hosts.link.cut(Traffic.ANSWERS)
        ended_badly(call)
    hosts.mend()


def test_of_a_lost_answer_only_the_disk_lock_keeps_it_from_running_twice(hosts: TwoHosts, standing: Standing) -> None:
    """The source tries to resume it: why hostagent has it arrive paused."""
    with standing.guest(TRAVELLER) as travelling:
        lose_the_answer(travelling, LIVE | TLS)
        assert travelling.runs_on() == [B]
        assert (travelling.state(A) or (0, 0))[0] == libvirt.VIR_DOMAIN_PAUSED
        with travelling.on(A) as domain:
            with pytest.raises(libvirt.libvirtError, match="write"):
                domain.resume()
            domain.destroy()
            domain.undefine()
        with travelling.proof(B) as proof:
            assert proof.check().good


def test_of_a_lost_answer_one_that_arrives_paused_runs_on_at_home(hosts: TwoHosts, standing: Standing) -> None:
    """What is left on the target is for hostagent to take away; as long as it is not, the lock keeps it paused."""
    with standing.guest(TRAVELLER) as travelling:
        lose_the_answer(travelling, LIVE | TLS | PAUSED)
        assert (travelling.state(B), travelling.runs_on()) == (ARRIVED, [A])
        with travelling.on(B) as domain:
            with pytest.raises(libvirt.libvirtError, match="write"):
                domain.resume()
            domain.destroy()
            domain.undefine()
        is_at_home(travelling)
        travelling.migrate(A, B)
        assert travelling.runs_on() == [B]


def test_a_source_daemon_that_dies_at_the_end_leaves_it_paused_on_both(hosts: TwoHosts, standing: Standing) -> None:
    """Nobody resumes it: hostagent has to, on one of them."""
    with standing.guest(TRAVELLER) as travelling:
        hosts.link.slow(HURRIED)
        with travelling.migrating(LIVE | TLS | PAUSED) as call:
            travelling.wait_until(lambda: travelling.state(A) == MIGRATING)
            hosts.link.cut(Traffic.ANSWERS)
            travelling.wait_until(lambda: travelling.state(B) == ARRIVED)
            os.kill(int(LIBVIRTD_PID.read_text()), signal.SIGKILL)
            ended_badly(call)
        hosts.mend()
        hosts.a.disconnect()
        hosts.a.start_libvirtd()
        assert (travelling.state(A), travelling.state(B)) == (MIGRATING, ARRIVED)
        with travelling.on(B) as domain:
            domain.destroy()
            domain.undefine()
        with travelling.on(A) as domain:
            domain.resume()
        is_at_home(travelling)


def test_it_goes_to_another_qemu_and_back(hosts: TwoHosts, standing: Standing, lab: Lab) -> None:
    emulators = {A: lab.system.emulator, B: lab.newer.emulator}
    with standing.guest(TRAVELLER) as travelling:
        for source, target in ((A, B), (B, A)):
            travelling.migrate_onto(source, target, emulators[target])
            with travelling.on(target) as domain:
                for flags in (0, libvirt.VIR_DOMAIN_XML_INACTIVE):
                    assert f"<emulator>{emulators[target]}</emulator>" in domain.XMLDesc(flags)
            with travelling.proof(target) as proof:
                assert proof.check().good


def test_a_pool_for_a_moment_tells_whether_a_folder_is_shared(hosts: TwoHosts) -> None:
    """A token from here is in the folder there. One that is a pool there already is refused: that pool is looked at."""
    wanted = "<pool type='dir'><name>{}</name><target><path>{}</path></target></pool>"
    token = GUEST_FILES / "token"
    token.touch()
    with hosts.b.connection() as there:
        pool = there.storagePoolCreateXML(wanted.format("looked-at", GUEST_FILES))
        assert "token" in pool.listVolumes()
        with pytest.raises(libvirt.libvirtError, match="conflict"):
            there.storagePoolCreateXML(wanted.format("another", GUEST_FILES))
        assert there.storagePoolLookupByTargetPath(str(GUEST_FILES)).name() == "looked-at"
        pool.destroy()
        assert not there.listAllStoragePools()
    token.unlink()
