"""Fixtures that several test files use."""

from pathlib import Path

import pytest
from databases_under_test import database_url, server_url

__all__ = ["database_url", "server_url"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test works in a folder of its own, where spills may go."""
    monkeypatch.chdir(tmp_path)
