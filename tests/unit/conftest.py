"""What tests of the command line are given."""

from pathlib import Path

import pytest
from called import Caller


@pytest.fixture
def hostagent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Caller:
    """hostagent on a host of its own, with two guests that can be updated."""
    return Caller(tmp_path / "state", monkeypatch)
