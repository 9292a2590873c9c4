"""What the steps of a hold rely on, asked of the fake and of the real libvirt alike."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hostagent.errors import Failed
from hostagent.facts import GuestState
from hostagent.hypervisor import Libvirt, Standing, save_end
from hostagent.hypervisor.domain_xml import live_differences, read_definition
from hostagent.hypervisor.fake import FaultKind
from hostagent.libvirt_files.held_definition import NAMESPACE
from hostagent.libvirt_files.state_image import StateImage, finished, was_finished
from hostagent.plan import ClockPolicy, Method, Technique
from hostagent.policy import PolicyPart
from hostagent.policy_xml import read_policy
from hostagent.update import holding
from hostagent.update.guest_hold import GuestHold, Side
from hostagent.update.hold import HOLD, HOLD_STEPS, PREPARE, RESTORE
from hostagent.update.hold_batch import HeldMember, HoldBatch
from hostagent.update.holding import bring_back, is_saved, what_is_wrong
from hostagent.update.journal import Entry, Kind, Outcome, Progress, progressed
from hostagent.update.ledger import begin
from hostagent.update.order import OrderedGuest, OrderKind, UpdateOrder
from hostagent.update.recovery import recover
from hostagent.update.saga import Engine
from hostagent.update.subject import Ports
from tests.contract.conftest import SECONDS, FakeWorld, World, fake_world, real_world

UPDATE = "contract"
BOOT = "of this test"


@dataclass
class HeldStage:
    """One guest, and the way through a hold by hand."""

    world: World
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self.engine = Engine(self.ports.journal, lambda *_: None, lambda: False)
        guest = self.ports.libvirt.guest(self.world.uuid)
        assert guest is not None
        ordered = OrderedGuest(
            uuid=self.world.uuid,
            name=self.world.name,
            before=guest.qemu,
            method=Method.IN_PLACE,
            technique=Technique.HOLD,
            budget_seconds=SECONDS,
        )
        order = UpdateOrder(kind=OrderKind.UPDATE, to=self.world.other, guests=(ordered,), pid=1)
        (batch,) = begin(self.ports, self.engine, UPDATE, order)
        assert isinstance(batch, HoldBatch)
        self.batch = batch

    @property
    def ports(self) -> Ports:
        return self.world.ports

    @property
    def libvirt(self) -> Libvirt:
        return self.ports.libvirt

    @property
    def member(self) -> HeldMember:
        return self.batch.members[0]

    @property
    def hold(self) -> GuestHold:
        return self.member.swap

    def now(self) -> Standing:
        now = self.libvirt.standing(self.world.uuid)
        assert now is not None
        return now

    def prepared(self) -> HeldStage:
        self.progress = self.engine.forward(PREPARE, self.hold, self.progress)
        return self

    def held(self) -> HeldStage:
        """Saved, and nothing of it runs."""
        self.progress = self.engine.forward(HOLD, self.hold, self.prepared().progress)
        return self

    def restored(self) -> HeldStage:
        """Back, standing still, on the other QEMU."""
        self.progress = self.engine.forward(RESTORE, self.hold, self.held().progress)
        return self

    def end(self) -> None:
        """The guest runs again, and nothing is left."""
        if self.progress.begun:
            (update,) = recover(self.ports, boot_id=update_boot(self.ports), tell=lambda *_: None)
            assert not update.is_open, update


def update_boot(ports: Ports) -> str:
    return str(ports.journal.rows()[0].boot_id)


@pytest.fixture(params=["fake", "real"])
def stage(request: pytest.FixtureRequest) -> Iterator[HeldStage]:
    with ExitStack() as stack:
        world = (
            stack.enter_context(fake_world(ordinary_ram=False))
            if request.param == "fake"
            else stack.enter_context(real_world(request.getfixturevalue("bench"), ordinary_ram=False))
        )
        made = HeldStage(world)
        try:
            yield made
        finally:
            made.end()


# -- libvirt's verbs ----------------------------------------------------------------------------------------------


def test_it_stands_still_and_goes_on(stage: HeldStage) -> None:
    assert stage.now().state is GuestState.RUNNING
    stage.libvirt.suspend(stage.world.uuid)
    assert (stage.now().state, stage.now().reason) == (GuestState.PAUSED_BY_OWNER, "user")
    stage.libvirt.suspend(stage.world.uuid)
    for _ in range(2):
        stage.libvirt.resume(stage.world.uuid)
        assert stage.now().state is GuestState.RUNNING


def test_where_it_stands_is_what_its_facts_say(stage: HeldStage) -> None:
    now, guest = stage.now(), stage.libvirt.guest(stage.world.uuid)
    assert guest is not None and guest.process is not None
    assert now.process == stage.ports.qemu.identify(guest.process.pid)
    assert (now.emulator, now.state, now.job) == (guest.definition.emulator, guest.state, "")
    assert stage.libvirt.standing("00000000-0000-0000-0000-000000000000") is None


def test_nothing_to_break_off_is_no_error(stage: HeldStage) -> None:
    stage.libvirt.abort_job(stage.world.uuid, SECONDS)
    assert stage.now().state is GuestState.RUNNING


def test_a_mark_that_is_not_there_is_no_error(stage: HeldStage) -> None:
    stage.libvirt.unmark(stage.world.uuid)


# -- saved --------------------------------------------------------------------------------------------------------


def test_it_is_saved_without_its_ram(stage: HeldStage) -> None:
    notes = stage.held().hold.notes
    data = Path(notes.plain.path).read_bytes()
    assert was_finished(data)
    image = StateImage.parse(data)
    assert image.leaves_shared_ram_out
    assert not image.was_running
    assert {pin.size for pin in notes.pins} <= {block.size for block in image.ram}
    assert len(data) < sum(pin.size for pin in notes.pins) // 8
    assert not stage.ports.qemu.alive(notes.old)
    assert (stage.now().state, stage.now().reason, stage.now().process) == (GuestState.SHUT_OFF, "saved", None)
    assert stage.libvirt.wait_ended(stage.world.uuid, SECONDS)
    assert is_saved(stage.hold)


def test_libvirt_takes_its_own_names_of_the_ram_away(stage: HeldStage) -> None:
    for pin in stage.held().hold.notes.pins:
        assert not Path(pin.ram).exists()
        found = Path(pin.link).stat()
        assert (found.st_dev, found.st_ino, found.st_size) == (pin.device, pin.inode, pin.size)


def test_both_sides_have_an_image_that_needs_no_capability(stage: HeldStage) -> None:
    notes = stage.held().hold.notes
    for side in Side:
        image = StateImage.parse(Path(notes.image(side).path).read_bytes())
        assert not image.leaves_shared_ram_out
        assert f"<emulator>{stage.hold.emulator(side)}</emulator>" in image.xml
        assert notes.held.token in image.xml


def test_what_is_not_running_cannot_be_saved(stage: HeldStage) -> None:
    stage.held()
    for ask in (stage.libvirt.suspend, stage.libvirt.resume):
        with pytest.raises(Failed):
            ask(stage.world.uuid)
    path = Path(stage.hold.notes.plain.path).with_suffix(".more")
    with pytest.raises(Failed):
        stage.libvirt.save(stage.world.uuid, stage.hold.notes.old, path, SECONDS, lambda *_: None)


def test_whoever_saves_is_asked_before_the_qemu_ends(stage: HeldStage) -> None:
    """With the whole image, once; the guest is still there, and is what libvirt ends next."""
    found = list[bytes]()

    def asked(image: bytes, waits: Callable[[], bool]) -> None:
        assert waits()
        assert stage.ports.qemu.alive(stage.hold.notes.old)
        found.append(image)

    path = saved_by(stage, asked)
    (image,) = found
    assert not was_finished(image)
    assert (finished(image), StateImage.parse(path.read_bytes())) == (
        path.read_bytes(),
        StateImage.parse(finished(image)),
    )
    assert not stage.ports.qemu.alive(stage.hold.notes.old)
    assert (stage.now().state, stage.now().reason) == (GuestState.SHUT_OFF, "saved")


def test_it_may_be_ended_as_it_is_saved(stage: HeldStage) -> None:
    """libvirt takes it as saved, and not as crashed."""
    saved_by(stage, lambda *_: stage.ports.qemu.kill(stage.hold.notes.old, SECONDS))
    assert (stage.now().state, stage.now().reason) == (GuestState.SHUT_OFF, "saved")


def test_whoever_is_asked_may_want_no_save(stage: HeldStage) -> None:
    """It stands still as before it, and can go on."""

    def asked(*_: object) -> None:
        raise Failed("looking at what was saved", found="nonsense")

    with pytest.raises(Failed, match="nonsense"):
        saved_by(stage, asked)
    assert (stage.now().state, stage.now().process) == (GuestState.PAUSED_BY_OWNER, stage.hold.notes.old)
    assert stage.now().job == ""
    stage.engine.back(HOLD_STEPS, stage.hold, stage.progress)
    assert stage.now().state is GuestState.RUNNING


def test_where_no_save_can_be_made_to_wait(stage: HeldStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may lack that: it is sealed once it has ended, then."""

    def refused(_: Path) -> None:
        raise OSError(errno.EPERM, "no permission")

    if isinstance(stage.world, FakeWorld):
        stage.world.host.fault(FaultKind.SAVE_ASKS_NOBODY)
    monkeypatch.setattr(save_end, "FileGate", refused)
    monkeypatch.setattr(holding, "_end_saved", lambda *_: pytest.fail("nobody is to be asked"))
    stage.restored()
    assert what_is_wrong(stage.hold, stage.hold.now(), Side.AFTER) is None


def saved_by(stage: HeldStage, asked: Callable[[bytes, Callable[[], bool]], None]) -> Path:
    """Where libvirt has saved it, with nothing of ours made of that."""
    notes = stage.prepared().hold.notes
    stage.progress = stage.engine.forward(HOLD[:1], stage.hold, stage.progress)
    stage.progress = progressed(stage.progress, Entry(Kind.STEP_BEGUN, stage.world.uuid, "save"))
    stage.ports.journal.append(UPDATE, Entry(Kind.STEP_BEGUN, stage.world.uuid, "save"))
    path = Path(notes.plain.path)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    stage.libvirt.save(stage.world.uuid, notes.old, path, SECONDS, asked)
    return path


# -- restored -----------------------------------------------------------------------------------------------------


def test_it_is_restored_with_its_ram_and_stands_still(stage: HeldStage) -> None:
    now = stage.restored().now()
    assert (now.state, now.emulator) == (GuestState.PAUSED_OTHERWISE, stage.world.other.emulator)
    assert now.process is not None
    assert {(pin.device, pin.inode) for pin in stage.hold.notes.pins} <= stage.ports.qemu.ram_inodes(now.process)
    assert what_is_wrong(stage.hold, stage.hold.now(), Side.AFTER) is None
    assert what_is_wrong(stage.hold, stage.hold.now(), Side.BEFORE) is not None
    assert NAMESPACE in stage.libvirt.live_xml(stage.world.uuid)
    stage.libvirt.unmark(stage.world.uuid)
    assert NAMESPACE not in stage.libvirt.live_xml(stage.world.uuid)


def test_its_policy_stands_beside_the_mark_and_stays(stage: HeldStage) -> None:
    own, uuid = PolicyPart(budget_seconds=2.0, clock=ClockPolicy.OFF), stage.world.uuid
    stage.libvirt.put_policy(uuid, own)
    try:
        stage.restored()
        assert NAMESPACE in stage.libvirt.live_xml(uuid)
        assert read_policy("it", read_definition(stage.libvirt.live_xml(uuid)).policy) == own
        stage.libvirt.unmark(uuid)
        assert NAMESPACE not in stage.libvirt.live_xml(uuid)
        assert read_policy("it", read_definition(stage.libvirt.live_xml(uuid)).policy) == own
        assert live_differences(stage.hold.notes.live_xml, stage.libvirt.live_xml(uuid), by_a_start=True) == ()
    finally:
        stage.libvirt.put_policy(uuid, PolicyPart())


def test_one_that_is_there_is_not_restored_once_more(stage: HeldStage) -> None:
    stage.restored()
    with pytest.raises(Failed):
        stage.libvirt.restore(Path(stage.hold.notes.before.path), SECONDS)
    assert what_is_wrong(stage.hold, stage.hold.now(), Side.AFTER) is None


def test_restored_and_ended_any_number_of_times(stage: HeldStage) -> None:
    """On either QEMU: until it goes on its RAM stays as it was."""
    stage.restored()
    for side in (Side.BEFORE, Side.AFTER):
        process = stage.now().process
        assert process is not None
        stage.ports.qemu.kill(process, SECONDS)
        assert stage.libvirt.wait_ended(stage.world.uuid, SECONDS)
        assert (stage.now().state, stage.now().reason) == (GuestState.SHUT_OFF, "crashed")
        bring_back(stage.hold, side)
        assert what_is_wrong(stage.hold, stage.hold.now(), side) is None


def test_other_ram_is_seen(stage: HeldStage) -> None:
    """libvirt gives a guest that the hook does not know new RAM: QEMU finds it wrong, or we do."""
    stage.held()
    told = stage.ports.config.paths.held / f"{stage.world.name}.held"
    content = told.read_bytes()
    told.unlink()
    with suppress(Failed):
        stage.libvirt.restore(Path(stage.hold.notes.before.path), SECONDS)
    assert what_is_wrong(stage.hold, stage.hold.now(), Side.BEFORE) is not None
    process = stage.now().process
    if process is not None:
        stage.ports.qemu.kill(process, SECONDS)
    assert stage.libvirt.wait_ended(stage.world.uuid, SECONDS)
    told.write_bytes(content)


def test_nobody_else_starts_it(stage: HeldStage) -> None:
    stage.held()
    with pytest.raises(Exception, match=r"it is held by hostagent \(update contract\).*run hostagent recover"):
        stage.world.start()
    assert stage.now().state is GuestState.SHUT_OFF


# -- all of it ----------------------------------------------------------------------------------------------------


def test_there_and_let_go(stage: HeldStage) -> None:
    stage.batch.run()
    assert (stage.member.outcome, stage.member.reason) == (Outcome.UPDATED, "")
    assert (stage.now().state, stage.now().emulator) == (GuestState.RUNNING, stage.world.other.emulator)
    notes = stage.hold.notes
    assert not any(Path(path).exists() for path in (*notes.files, *(pin.link for pin in notes.pins)))


def test_undone_after_it_was_restored(stage: HeldStage) -> None:
    before = stage.now().emulator
    stage.restored()
    stage.engine.back(HOLD_STEPS, stage.hold, stage.progress)
    assert (stage.now().state, stage.now().emulator) == (GuestState.RUNNING, before)
    assert NAMESPACE not in stage.libvirt.live_xml(stage.world.uuid)


def test_undone_before_it_was_saved(stage: HeldStage) -> None:
    stage.prepared()
    stage.progress = stage.engine.forward(HOLD[:1], stage.hold, stage.progress)
    assert stage.now().state is GuestState.PAUSED_BY_OWNER
    stage.engine.back(HOLD_STEPS, stage.hold, stage.progress)
    assert stage.now().state is GuestState.RUNNING
    with stage.libvirt.sender(stage.world.uuid) as old:
        assert not old.capabilities()["x-ignore-shared"]
