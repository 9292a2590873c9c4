"""What a verb is called with before it says anything: permission, and the settings. The service needs no more."""

from __future__ import annotations

import os

from hostagent.cli.verbs import Asked
from hostagent.config import Config
from hostagent.errors import UsageError


def settings_of(asked: Asked, *, root: bool = True) -> Config:
    """The settings that were asked for; UsageError when they make no sense, or root is needed."""
    if root and os.geteuid() != 0:
        raise UsageError(
            "starting hostagent", expected="to be run by root", found=f"user {os.geteuid()}", hint="use sudo"
        )
    config = Config.load(asked.config)
    if asked.connect is None:
        return config
    return config.model_copy(update={"libvirt": config.libvirt.model_copy(update={"uri": _a_uri(asked.connect)})})


def _a_uri(text: str) -> str:
    if ":" not in text:
        raise UsageError("reading --connect", expected="a libvirt URI like qemu:///system", found=repr(text))
    return text
