"""Fixtures that several test files use."""

from pathlib import Path

import pytest

from tests.support.databases import database_url, server_url

__all__ = ["database_url", "server_url"]

FOLDER = Path(__file__).parent
TIERS = ("unit", "integration", "acceptance", "mutants")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Each test is marked with its tier; a line of the fault matrix in full runs where its marker is asked for."""
    for item in items:
        if (tier := item.path.relative_to(FOLDER).parts[0]) in TIERS:
            item.add_marker(tier)
    if "faults" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("faults")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test works in a folder of its own, where spills may go."""
    monkeypatch.chdir(tmp_path)
