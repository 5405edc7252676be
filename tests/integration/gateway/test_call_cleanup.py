"""What a call opens, closes, and is called."""

import asyncio
import uuid

import pytest

from arbstr_asgi._utils import new_request_id
from arbstr_asgi.gateway.attempt import Closing


def test_the_last_first_whatever_fails() -> None:
    """Everything is closed in the opposite order, also when something fails, and that is raised."""
    closed: list[int] = []

    async def main() -> None:
        async with Closing() as closing:
            for number in range(4):

                async def close(number: int = number) -> None:
                    closed.append(number)
                    if number in (1, 2):
                        raise OSError(number)

                closing.add(close)

    with pytest.raises(OSError, match="1") as caught:
        asyncio.run(main())
    assert closed == [3, 2, 1, 0]
    assert isinstance(caught.value.__context__, OSError)


def test_closed_in_between() -> None:
    """What was closed already is not closed again, and what is added later is."""
    closed: list[str] = []

    async def main() -> None:
        async with Closing() as closing:
            for name in ("first", "second"):

                async def close(name: str = name) -> None:
                    closed.append(name)

                closing.add(close)
                if name == "first":
                    await closing.close()
            assert closed == ["first"]

    asyncio.run(main())
    assert closed == ["first", "second"]


def test_call_ids_are_random_uuids() -> None:
    """A call's id is a UUID of version 4, written as usual, and never the same."""
    names = [new_request_id() for _ in range(500)]
    assert len(set(names)) == 500
    for name in names:
        found = uuid.UUID(name)
        assert (found.version, found.variant, str(found)) == (4, uuid.RFC_4122, name)
