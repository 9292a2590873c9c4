"""``[agent]``: the service that watches the host, serves metrics and the HTTP API. See docs/agent.md."""

import ipaddress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from hostagent.policy import tcp_address
from hostagent.setting_types import AbsolutePath, Seconds, Table


class LogFormat(StrEnum):
    """How the service writes a line of its log."""

    LOGFMT = "logfmt"  # key=value
    JSON = "json"  # an object


def _is_loopback(listen: str) -> bool:
    place = tcp_address(listen)
    return place is not None and ipaddress.ip_address(place[0]).is_loopback


class AgentSettings(Table):
    """``[agent]``: what it serves, to whom, and how often it looks."""

    socket: AbsolutePath = Path("/run/hostagent/agent.sock")
    group: Annotated[
        str,
        Field(pattern=r"^([a-z_][a-z0-9_-]{0,30})?$", description="a group's name, or '' for root alone"),
    ] = "hostagent"  # whose members may use the socket; without such a group root alone may
    look_seconds: Seconds = 60.0  # between two looks at the host; what libvirt tells is looked at sooner
    listen: Annotated[
        str, Field(max_length=60, description="'', or an address and a port like '127.0.0.1:9177' or '[::1]:9177'")
    ] = ""  # TCP as well; any other than this host's own addresses (127.0.0.1) only by TLS
    tls_cert: AbsolutePath | None = Field(default=None, description="an absolute path of a PEM file")
    tls_key: AbsolutePath | None = Field(default=None, description="an absolute path of a PEM file")
    tls_client_ca: AbsolutePath | None = Field(
        default=None, description="an absolute path of a PEM file"
    )  # whose certificates clients must have; without it TCP has the metrics alone
    log_format: Annotated[LogFormat, Field(strict=False, description="logfmt or json")] = LogFormat.LOGFMT

    @field_validator("listen")
    @classmethod
    def _is_an_address(cls, listen: str) -> str:
        if listen:
            place = tcp_address(listen)
            if place is None:
                raise ValueError("no address")
            ipaddress.ip_address(place[0])  # a name could become any address
        return listen

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise _wrong("tls_cert and tls_key, both or neither", "one of them")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise _wrong("tls_cert and tls_key beside tls_client_ca", "none")
        if self.listen and self.tls_cert is None and not _is_loopback(self.listen):
            raise _wrong(
                "listen = an address of this host alone like '127.0.0.1:9177', or tls_cert and tls_key as well",
                repr(self.listen),
            )
        return self

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port of ``listen``."""
        return tcp_address(self.listen) if self.listen else None


def _wrong(expected: str, found: str) -> PydanticCustomError:
    return PydanticCustomError("agent", "{expected}", {"expected": f"[agent] {expected}", "uri": found})
