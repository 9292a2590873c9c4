"""The API by TCP: for whoever has a certificate of the right authority, and for nobody else."""

from __future__ import annotations

import asyncio
import logging
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from served import MadeUp, Served, answer_of

from hostagent.agent.api.serving import Tls, serve_by_tls
from hostagent.errors import UsageError

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates with openssl")


def openssl(folder: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


def authority(folder: Path, name: str) -> None:
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl(folder, "req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")


def certificate(folder: Path, name: str, of: str) -> None:
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    by = ("-CA", f"{of}.pem", "-CAkey", f"{of}.key", "-addext", "subjectAltName=IP:127.0.0.1")
    openssl(folder, "req", "-x509", *key, *by, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("ours", "another"):
        authority(folder, name)
    certificate(folder, "agent", "ours")
    certificate(folder, "client", "ours")
    certificate(folder, "stranger", "another")
    return folder


def said_to(served: Served, certificates: Path, client: str | None, version: ssl.TLSVersion | None = None) -> bytes:
    """What a client with that certificate gets for asking."""
    context = ssl.create_default_context(cafile=str(certificates / "ours.pem"))
    if client is not None:
        context.load_cert_chain(certificates / f"{client}.pem", certificates / f"{client}.key")
    if version is not None:
        context.maximum_version = version
    tls = Tls(certificates / "agent.pem", certificates / "agent.key", certificates / "ours.pem")
    said: list[bytes] = []

    async def run() -> None:
        async with serve_by_tls(served.app(), ("127.0.0.1", 0), tls) as port:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
                writer.write(b"GET /v1/status HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
                said.append(await reader.read())
                writer.close()
            except (ssl.SSLError, ConnectionError):
                said.append(b"")

    asyncio.run(run())
    return said[0]


def test_whoever_has_a_certificate_of_the_authority_is_served(
    tmp_path: Path, certificates: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    answer = answer_of(said_to(Served(tmp_path), certificates, "client"))
    assert (answer.status, answer.json) == (200, {})
    assert "certificate client at 127.0.0.1 asks for status" in caplog.text


@pytest.mark.parametrize("client", [None, "stranger"])
def test_nobody_else_is(tmp_path: Path, certificates: Path, client: str | None) -> None:
    verbs = MadeUp()
    assert said_to(Served(tmp_path, verbs), certificates, client) == b""
    assert verbs.words == []


def test_nothing_older_is_spoken(tmp_path: Path, certificates: Path) -> None:
    assert said_to(Served(tmp_path), certificates, "client", ssl.TLSVersion.TLSv1_2) == b""


@pytest.mark.parametrize("missing", ["certificate", "key", "client_ca"])
def test_without_one_of_the_files_nobody_is_served(tmp_path: Path, certificates: Path, missing: str) -> None:
    files = {"certificate": "agent.pem", "key": "agent.key", "client_ca": "ours.pem", missing: "client.key"}
    if missing == "key":
        files[missing] = "nothing"
    tls = Tls(**{name: certificates / file for name, file in files.items()})

    async def run() -> None:
        async with serve_by_tls(Served(tmp_path).app(), ("127.0.0.1", 0), tls):
            pass

    with pytest.raises(UsageError, match="reading the agent's certificates"):
        asyncio.run(run())
