"""A unit test that reaches outside its process fails."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest

OUTSIDE = ("socket.bind", "socket.connect", "socket.getaddrinfo", "sqlite3.connect", "subprocess.Popen", "os.fork")
_events: list[str] = []


def _note(event: str, _: tuple[Any, ...]) -> None:
    if event in OUTSIDE:
        _events.append(event)


sys.addaudithook(_note)


@pytest.fixture(autouse=True)
def _nothing_outside(request: pytest.FixtureRequest) -> Iterator[None]:
    """No socket, no database and no process, but for the test of the structure, which starts processes."""
    _events.clear()
    yield
    assert not _events or request.path.name == "test_structure.py"
