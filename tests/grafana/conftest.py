"""Updates of real guests, with Prometheus looking on."""

import os
from collections.abc import Iterator

import pytest

from tests.grafana.scene import COPIED, KEPT, Scene, scene


@pytest.fixture(scope="package")
def updated() -> Iterator[Scene]:
    """There, once in vain, and two of them back."""
    if "HOSTAGENT_BENCH" not in os.environ:
        pytest.skip("runs inside the bench")
    with scene() as made:
        made.update("10.0")
        made.update_in_vain()
        made.update("7.2", "--guest", KEPT.name, "--guest", COPIED.name)
        yield made
