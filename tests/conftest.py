"""Fixtures that several test files use."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.databases import database_url, migrated_templates, server_url

__all__ = ["database_url", "migrated_templates", "server_url"]

FOLDER = Path(__file__).parent
TIERS = ("unit", "integration", "acceptance", "mutants")

settings.register_profile("quick", max_examples=100, deadline=None)
settings.register_profile("thorough", max_examples=600, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or "quick")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Which mutants are run: all of them, or one of the two selections or both."""
    group = parser.getgroup("mutants")
    group.addoption("--mutants-third", type=int, metavar="N", help="run every third mutant, another third for each N")
    group.addoption(
        "--mutants-changed", metavar="REF", help="run the mutants of what has changed since a git reference"
    )


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
