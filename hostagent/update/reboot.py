"""The reboot: a guest is shut down in order, and started anew on the QEMU that it is to run on.

Up to the commit (`boot`) a guest that does not get through runs again on what it ran on before; from it on it runs on
the new one, or a person is asked for. The functions are in `rebooting.py`.
"""

from hostagent.update.guest_alone import Tables
from hostagent.update.guest_reboot import GuestReboot
from hostagent.update.rebooting import (
    has_booted,
    is_prepared,
    is_shut_down,
    is_started,
    prepare,
    run_again,
    see_it_boot,
    shut_down,
    start,
)
from hostagent.update.saga import Step

REBOOT: Tables[GuestReboot] = Tables(
    prepare=(Step("prepare", prepare, is_prepared),),
    carry=(
        Step("shut-down", shut_down, is_shut_down, undo=run_again),
        Step("start", start, is_started),
        Step("boot", see_it_boot, has_booted, commits=True),
    ),
    left_by="shut-down",
)
