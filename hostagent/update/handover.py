"""The handover: a new QEMU takes a guest over from the old one, with the RAM where it is.

These tables are the whole of it. Each step does one thing; the `is_done` beside it asks the world. Before the commit
(`resume`) everything can be undone; from it on the old QEMU never runs again. The functions are in `beside.py`,
`crossing.py`, `taking_over.py` and `attachment.py`.
"""

from hostagent.update.attachment import attach, detach, is_attached, is_detached, is_unpinned, look_at_guest
from hostagent.update.beside import is_pinned, new_one_waits, prepare, start_new, stop_new, unprepare
from hostagent.update.copying import begin_copy, end_copy, is_copying
from hostagent.update.crossing import (
    are_reconciled,
    give_settings_back,
    loaded_and_paused,
    reconcile,
    resume_old,
    switch,
)
from hostagent.update.saga import Step
from hostagent.update.taking_over import (
    end_old,
    is_proven,
    new_one_runs,
    old_one_is_gone,
    prove,
    record_names_new,
    restore_record,
    resume_new,
    rewrite_record,
)

# Beside the old QEMU and libvirt; then, with libvirt away, one guest after the other; then with libvirt back.
BESIDE = (
    Step("prepare", prepare, is_pinned, undo=unprepare),
    Step("start", start_new, new_one_waits, undo=stop_new),
)
# Only for RAM that has no name; begun for all of them, then waited for.
COPY = (Step("copy", begin_copy, is_copying, undo=end_copy),)
DETACH = (Step("detach", detach, is_detached, undo=attach),)
SWAP = (
    Step("reconcile", reconcile, are_reconciled, undo=give_settings_back),
    Step("switch", switch, loaded_and_paused, undo=resume_old),
    Step("record", rewrite_record, record_names_new, undo=restore_record),
    Step("resume", resume_new, new_one_runs, commits=True),
    Step("retire", end_old, old_one_is_gone),
    Step("prove", prove, is_proven),
)
ATTACH = (Step("attach", attach, is_attached),)
AFTER = (Step("look", look_at_guest, is_unpinned),)

GUEST_STEPS = (*BESIDE, *COPY, *SWAP, *AFTER)
