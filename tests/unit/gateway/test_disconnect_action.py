"""What happens to a provider's reply when its client leaves, and how many are read on."""

import pytest

from arbstr_asgi import Drain, Provider
from arbstr_asgi.drains import Drains
from arbstr_asgi.leaving import Leaving, on_leaving

USUAL = {"complete": False, "done": False, "held": False, "answered": True, "streaming": True, "room": True}
CASES = [
    ({}, Leaving.DRAIN),
    ({"drain": None}, Leaving.CANCEL),
    ({"room": False}, Leaving.CANCEL),
    ({"answered": False}, Leaving.CANCEL),
    ({"answered": False, "streaming": False}, Leaving.DRAIN),
    ({"answered": False, "streaming": False, "drain": None}, Leaving.CANCEL),
    ({"answered": False, "streaming": False, "room": False}, Leaving.CANCEL),
    ({"done": True}, Leaving.END_SOON),
    ({"done": True, "drain": None}, Leaving.END_SOON),
    ({"done": True, "held": True}, Leaving.CANCEL),
    ({"streaming": False, "held": True}, Leaving.CANCEL),
    ({"complete": True, "held": True}, Leaving.CANCEL),
    ({"complete": True}, Leaving.NOTHING),
    ({"complete": True, "done": True}, Leaving.NOTHING),
]


@pytest.mark.parametrize(("facts", "expected"), CASES)
def test_on_leaving(facts: dict[str, bool], expected: Leaving) -> None:
    """Moment, policy and caps decide: the client that has everything changes nothing, then caps, then the policy."""
    assert on_leaving(**{"drain": Drain(), **USUAL, **facts}) is expected  # type: ignore[arg-type]


def test_policies() -> None:
    """The words of the configuration and a table of caps mean the same kind of thing; a mapping is as good."""
    for said, meant in (("drain", Drain()), ("cancel", None), (Drain(drain=3), Drain(drain=3))):
        assert Provider(name="p", url="http://h", disconnect=said).drain == meant  # type: ignore[arg-type]
    mapping = {"drain": 5.0}
    assert Provider(name="p", url="http://h", disconnect=mapping).drain == Drain(drain=5)  # type: ignore[arg-type]


def test_caps_count_per_provider() -> None:
    """One provider's drains, and an end user's with it, take no place from another provider's."""
    drains, caps = Drains(), Drain(at_once=2, per_end_user=1)
    drains.begin("a", "alice")
    assert not drains.has_room("a", "alice", caps)
    assert drains.has_room("a", "bob", caps)
    assert drains.has_room("b", "alice", caps)
    drains.begin("a", None)
    assert not drains.has_room("a", "bob", caps)
    assert not drains.has_room("a", None, caps)
    drains.begin("b", "alice")
    assert (drains.active, drains.by_provider) == (3, {"a": 2, "b": 1})
    drains.end("a", None)
    drains.end("a", "alice")
    assert drains.has_room("a", "alice", caps)
    assert (drains.active, drains.by_provider) == (1, {"b": 1})
