"""A place for a campaign."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder for a server and the histories, which stay where something was found."""
    # Directly under /tmp: a server that runs for root must be able to reach its folder.
    place = Path(tempfile.mkdtemp(prefix="assistant-faults-", dir="/tmp"))
    place.chmod(0o711)
    (place / "histories").mkdir()
    yield place
    shutil.rmtree(place)
