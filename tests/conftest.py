"""Fixtures that several test files use."""

from pathlib import Path

import pytest
from databases_under_test import database_url, server_url

__all__ = ["database_url", "server_url"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The full fault matrix takes minutes: it runs where it is asked for by its marker."""
    if "faults" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("faults")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test works in a folder of its own, where spills may go."""
    monkeypatch.chdir(tmp_path)
