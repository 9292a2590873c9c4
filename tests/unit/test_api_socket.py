"""Who gets anything from the agent's socket: asked of the kernel, with real users, as they connect."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from served import Served, connected

from hostagent.agent.api import socket_file
from hostagent.agent.api.peers import Admission, Peer
from hostagent.agent.api.socket_file import listen
from hostagent.errors import Refused

GROUP, OTHER, NOBODY = 64_123, 64_124, 65_534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


def as_user(uid: int, gid: int, groups: Sequence[int], do: Callable[[], str]) -> str:
    """What `do` says in a process of somebody else's."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said = "it did not get so far"
        try:
            os.setgroups(list(groups))
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            said = do()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        finally:
            os.write(writing, said.encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        said = file.read()
    os.waitpid(child, 0)
    return said


def status_of(path: Path) -> Callable[[], str]:
    """The first line of an answer of the agent's at that socket, and whether facts come with it."""

    def ask() -> str:
        with connected(path) as connection:
            connection.sendall(b"GET /v1/openapi.json HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            said = b""
            while piece := connection.recv(65536):
                said += piece
        facts = " with facts" if b"/v1/updates" in said else ""
        return said.split(b"\r\n")[0].decode() + facts

    return ask


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Served:
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)  # pytest keeps them to itself; what is tested here is the socket
    monkeypatch.setattr(Admission, "of_group", classmethod(lambda cls, name: cls(GROUP, name)))
    return Served(tmp_path, group="hostagent")


@as_root
@pytest.mark.parametrize(
    ("uid", "gid", "groups", "said"),
    [
        (0, 0, [], "HTTP/1.1 200 OK with facts"),
        (NOBODY, NOBODY, [OTHER], "PermissionError: [Errno 13] Permission denied"),
        (NOBODY, OTHER, [GROUP, OTHER], "HTTP/1.1 200 OK with facts"),
        (NOBODY, GROUP, [], "HTTP/1.1 200 OK with facts"),
    ],
    ids=["root", "nobody", "by another group of his", "by his own group"],
)
def test_who_gets_facts(served: Served, uid: int, gid: int, groups: list[int], said: str) -> None:
    with served.in_a_thread():
        assert as_user(uid, gid, groups, status_of(served.socket)) == said


@as_root
def test_who_gets_past_the_file_s_mode_gets_a_sentence_and_no_facts(served: Served) -> None:
    """As when somebody has opened the file to all."""
    with served.in_a_thread():
        served.socket.chmod(0o666)
        assert as_user(NOBODY, NOBODY, [OTHER], status_of(served.socket)) == "HTTP/1.1 403 Forbidden"
        assert as_user(NOBODY, OTHER, [OTHER, GROUP], status_of(served.socket)) == "HTTP/1.1 200 OK with facts"


@as_root
def test_who_connected_counts_not_what_he_becomes(tmp_path: Path) -> None:
    """As `nobody` connects and then becomes root, as a set-user-id program would: he stays nobody."""
    ours, his = socket.socketpair(socket.AF_UNIX)
    with ours, his:
        assert Peer.of(ours).uid == 0
    tmp_path.chmod(0o755)
    for folder in tmp_path.parents[:2]:
        folder.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        (tmp_path / "s").chmod(0o666)
        listening.listen()

        def connects_and_becomes_root() -> str:
            with connected(tmp_path / "s") as connection:
                os.setresuid(0, 0, 0)
                connection.send(b"x")
                return str(connection.recv(1))

        child = os.fork()
        if child == 0:
            os.setgroups([OTHER])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, 0)
            connects_and_becomes_root()
            os._exit(0)
        connection, _ = listening.accept()
        with connection:
            connection.recv(1)
            peer = Peer.of(connection)
            connection.send(b"y")
        os.waitpid(child, 0)
    assert (peer.uid, peer.gids) == (NOBODY, {NOBODY, OTHER})
    with pytest.raises(Refused, match=r"expected root, or a member of the group g, found user 65534 \(hint: use sudo"):
        Admission(GROUP, "g").check(peer)


def test_without_such_a_group_root_alone_may() -> None:
    admission = Admission.of_group("no such group here")
    admission.check(Peer(1, 0, frozenset({0})))
    with pytest.raises(Refused):
        admission.check(Peer(1, 1000, frozenset({0, GROUP})))


# -- the file


@pytest.mark.parametrize(("gid", "mode"), [(None, 0o600), (os.getgid(), 0o660)])
def test_its_mode(tmp_path: Path, gid: int | None, mode: int) -> None:
    before = os.umask(0)
    try:
        file = listen(tmp_path / "new" / "s", gid)
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.path.stat().st_mode) == mode
    assert stat.S_ISSOCK(file.path.stat().st_mode)
    file.close()
    assert list((tmp_path / "new").iterdir()) == []


def test_it_is_never_open_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every call of the system that it is made by: nobody else can reach it, or it has its mode already."""
    seen: list[str] = []

    def look() -> None:
        for folder, _, names in os.walk(tmp_path):
            for name in names:
                path = Path(folder, name)
                if stat.S_ISSOCK(path.lstat().st_mode):
                    inside = Path(folder) != tmp_path and stat.S_IMODE(Path(folder).stat().st_mode) == 0o700
                    seen.append("inside" if inside else oct(stat.S_IMODE(path.lstat().st_mode)))

    def watched(name: str) -> None:
        real = getattr(os, name)

        def call(*args: object, **more: object) -> object:
            look()
            done = real(*args, **more)
            look()
            return done

        monkeypatch.setattr(socket_file.os, name, call)

    for name in ("mkdir", "open", "chown", "chmod", "rename", "close", "rmdir"):
        watched(name)
    before = os.umask(0)
    try:
        file = listen(tmp_path / "s", os.getgid())
    finally:
        os.umask(before)
        monkeypatch.undo()
    file.close()
    assert set(seen) == {"inside", "0o660"}


def test_what_a_crash_left_is_replaced_and_another_agent_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s"
    left = listen(path, None)
    left.socket.close()
    file = listen(path, None)
    with pytest.raises(Refused, match="one that answers"):
        listen(path, None)
    left.close()  # its name is another's by now
    assert path.exists()
    file.close()
    assert not path.exists()


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("kept")
    (tmp_path / "s").symlink_to(tmp_path / "elsewhere")
    file = listen(tmp_path / "s", None)
    assert stat.S_ISSOCK((tmp_path / "s").lstat().st_mode)
    file.close()
    assert (tmp_path / "elsewhere").read_text() == "kept"


def test_a_directory_that_others_can_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(Refused, match="a directory of root's that nobody else can write"):
        listen(tmp_path / "s", None)
    (tmp_path / "real").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(Refused):
        listen(tmp_path / "link" / "s", None)


def test_a_path_longer_than_a_socket_s_may_be(tmp_path: Path) -> None:
    path = tmp_path / ("d" * 100) / "s"
    file = listen(path, None)
    file.close()
