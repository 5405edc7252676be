"""What a call is called."""

import uuid

from arbstr_asgi._utils import new_request_id


def test_call_ids_are_random_uuids() -> None:
    """A call's id is a UUID of version 4, written as usual, and never the same."""
    names = [new_request_id() for _ in range(500)]
    assert len(set(names)) == 500
    for name in names:
        found = uuid.UUID(name)
        assert (found.version, found.variant, str(found)) == (4, uuid.RFC_4122, name)
