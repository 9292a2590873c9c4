"""The hold: a guest is saved without its RAM, nothing of it runs, and it is restored with the RAM that stayed.

These tables are the whole of it. Before the commit (`resume`) everything can be undone: what was saved is restored on
what it ran on. From then on what was saved is never loaded again. The functions are in `holding.py` and `restoring.py`.
"""

from hostagent.update.holding import (
    is_prepared,
    is_saved,
    pause,
    prepare,
    resume_as_before,
    save,
    stands_still,
    take_back,
    unprepare,
)
from hostagent.update.restoring import end_restored, is_let_go, is_restored, is_resumed, look, restore, resume
from hostagent.update.saga import Step

PREPARE = (Step("prepare", prepare, is_prepared, undo=unprepare),)
HOLD = (
    Step("pause", pause, stands_still, undo=resume_as_before),
    Step("save", save, is_saved, undo=take_back),
)
RESTORE = (Step("restore", restore, is_restored, undo=end_restored),)
RESUME = (Step("resume", resume, is_resumed, commits=True),)
AFTER = (Step("look", look, is_let_go),)

HOLD_STEPS = (*PREPARE, *HOLD, *RESTORE, *RESUME, *AFTER)
