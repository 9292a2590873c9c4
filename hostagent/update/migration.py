"""The live migration: a guest goes to a peer while it runs, and comes back onto the new QEMU if it shall.

It stands still as it arrives, and the commit (`resume`) is what has it go on there: before it the guest is brought back
to where it was, which has all of it; after it, it runs on the peer whatever happens. Coming back is the same the other
way round; when that fails the guest stays on the peer. Disks that the peer does not see are copied along, into images
that are made for them (`place`) and go when it is back (`clear-peer`). The functions are in `leaving.py`, `passage.py`
and `storage_steps.py`.
"""

from hostagent.update.guest_alone import Tables
from hostagent.update.guest_migration import GuestMigration
from hostagent.update.leaving import (
    is_home,
    is_on_its_way_back,
    is_prepared,
    is_there,
    leave,
    look_at_home,
    look_there,
    prepare,
    resume_at_home,
    resume_there,
    return_home,
    stay,
    unprepare,
    was_looked_at,
    was_looked_at_home,
    went,
)
from hostagent.update.saga import Step
from hostagent.update.storage_steps import clear_peer, displace, is_clear, is_placed, place

RETURN = "return"  # the step by which it comes back: once that is done the peer has let it go
_PREPARE = (Step("prepare", prepare, is_prepared, undo=unprepare),)
_PLACE = (Step("place", place, is_placed, undo=displace),)
_GO = (
    Step("migrate", leave, went, undo=stay),
    Step("resume", resume_there, is_there, commits=True),
)
_LOOK = (Step("look", look_there, was_looked_at),)
_RETURN = (
    Step(RETURN, return_home, is_on_its_way_back, undo=GuestMigration.clear_return),
    Step("resume-at-home", resume_at_home, is_home),  # no commit: it has left the peer, and goes on whatever is written
    Step("look-at-home", look_at_home, was_looked_at_home),
)

_CLEAR = (Step("clear-peer", clear_peer, is_clear),)


def tables_of(*, comes_back: bool, copies_storage: bool) -> Tables[GuestMigration]:
    """What such a migration does."""
    place_first, clear_last = (_PLACE, _CLEAR) if copies_storage else ((), ())
    after = (*_LOOK, *_RETURN, *clear_last) if comes_back else _LOOK
    return Tables((*_PREPARE, *place_first), _GO, after, left_by="look")
