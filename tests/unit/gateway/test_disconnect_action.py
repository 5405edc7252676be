"""What happens to a provider's reply when its client leaves, and how many are read on."""

import pytest

from arbstr_asgi import Drain, Provider
from arbstr_asgi.gateway.disconnects import DisconnectAction, DrainLimiter, disconnect_action

USUAL = {"complete": False, "done": False, "held": False, "answered": True, "streaming": True, "room": True}
CASES = [
    ({}, DisconnectAction.DRAIN),
    ({"drain": None}, DisconnectAction.CANCEL),
    ({"room": False}, DisconnectAction.CANCEL),
    ({"answered": False}, DisconnectAction.CANCEL),
    ({"answered": False, "streaming": False}, DisconnectAction.DRAIN),
    ({"answered": False, "streaming": False, "drain": None}, DisconnectAction.CANCEL),
    ({"answered": False, "streaming": False, "room": False}, DisconnectAction.CANCEL),
    ({"done": True}, DisconnectAction.END_SOON),
    ({"done": True, "drain": None}, DisconnectAction.END_SOON),
    ({"done": True, "held": True}, DisconnectAction.CANCEL),
    ({"streaming": False, "held": True}, DisconnectAction.CANCEL),
    ({"complete": True, "held": True}, DisconnectAction.CANCEL),
    ({"complete": True}, DisconnectAction.NOTHING),
    ({"complete": True, "done": True}, DisconnectAction.NOTHING),
]


@pytest.mark.parametrize(("facts", "expected"), CASES)
def test_on_leaving(facts: dict[str, bool], expected: DisconnectAction) -> None:
    """Moment, policy and caps decide: the client that has everything changes nothing, then caps, then the policy."""
    assert disconnect_action(**{"drain": Drain(), **USUAL, **facts}) is expected  # type: ignore[arg-type]


def test_policies() -> None:
    """The words of the configuration and a table of caps mean the same kind of thing; a mapping is as good."""
    for said, meant in (("drain", Drain()), ("cancel", None), (Drain(drain=3), Drain(drain=3))):
        assert Provider(name="p", url="http://h", disconnect=said).drain == meant  # type: ignore[arg-type]
    mapping = {"drain": 5.0}
    assert Provider(name="p", url="http://h", disconnect=mapping).drain == Drain(drain=5)  # type: ignore[arg-type]


def test_caps_count_per_provider() -> None:
    """One provider's drains, and an end user's with it, take no place from another provider's."""
    drains, caps = DrainLimiter(), Drain(at_once=2, per_end_user=1)
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
