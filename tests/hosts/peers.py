"""What the settings say of the other host, as a guest's owner would write it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hostagent.peer_settings import Transport
from tests.bench.guest_spec import GUEST_FILES
from tests.bench.lab import CONFIG, Lab
from tests.bench.link import A, B
from tests.bench.two_hosts import MIGRATE_URIS, PLAIN_URIS, SSH_URIS, URIS

OVER = {Transport.TLS: URIS, Transport.SSH: SSH_URIS, Transport.PLAIN: PLAIN_URIS}
PEERS = """
[policy]
allow = ["in-place", "in-place-copy", "live-migrate"]

[migrate]
uri = "{home}"
migrate_uri = "{migrate_home}"
return = {returns}
copy_storage = {copies}
lossy_emulation = true
least_seconds = {least}
seconds_per_gib = 1
call_seconds = {call}
end_seconds = {end}

[[peer]]
name = "host-b"
uri = "{peer}"
migrate_uri = "{migrate_peer}"
transport = "{transport}"
shared = ["{shared}"]
coherent = true
"""


class Putting:
    """Writes it into a drop-in."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(
        self,
        transport: Transport = Transport.TLS,
        *,
        returns: bool = True,
        least: float = 60.0,
        end: float = 15.0,
        call: float = 10.0,
        copies: bool = False,
    ) -> Lab:
        uris = OVER[transport]
        self._path.write_text(
            PEERS.format(
                home=uris[A],
                peer=uris[B],
                migrate_home=MIGRATE_URIS[A],
                migrate_peer=MIGRATE_URIS[B],
                transport=transport,
                returns=str(returns).lower(),
                copies=str(copies).lower(),
                shared=GUEST_FILES,
                least=least,
                end=end,
                call=call,
            )
        )
        return Lab.load()


@contextmanager
def putting() -> Iterator[Putting]:
    """Nothing of it is left afterwards."""
    path = Path(f"{CONFIG}.d") / "peers.toml"
    path.parent.mkdir(exist_ok=True)
    try:
        yield Putting(path)
    finally:
        path.unlink(missing_ok=True)
