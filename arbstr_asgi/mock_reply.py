"""What a mock provider says: a completion, or the events of a stream, as bytes.

It speaks OpenAI's protocol as far as metering can tell: with `stream_options.include_usage` every chunk has
`"usage": null` and a last chunk without choices has the counts. A token is a word.
"""

import json
from collections.abc import Iterator
from typing import Any

REPLY = "Every token that passes through here is counted, priced and written down, and nobody waits for it."
ERROR = {"error": {"message": "mock: told to fail", "type": "server_error", "param": None, "code": "mock"}}
WORDS = REPLY.split()


def counted(given: int, answered: int = len(WORDS)) -> dict[str, int]:
    """Usage of so many tokens."""
    return {"prompt_tokens": given, "completion_tokens": answered, "total_tokens": given + answered}


def completion(common: dict[str, Any], given: int, told: frozenset[str]) -> bytes:
    """A whole answer to `given` tokens."""
    if told & {"error-event", "late-error"}:
        return _to_json(ERROR)
    choices = [{"index": 0, "message": {"role": "assistant", "content": REPLY}, "finish_reason": "stop"}]
    said = {**common, "object": "chat.completion", "choices": choices}
    return _to_json(said if "no-usage" in told else {**said, "usage": counted(given)})


def events(common: dict[str, Any], given: int, told: frozenset[str], *, asked: bool) -> list[bytes]:
    """The same as a stream, with usage where it is `asked` for."""
    found = list(_events(common, given, told, asked=asked and "no-usage" not in told))
    if "error-event" in told:
        found = [_event(ERROR)]
    elif "late-error" in told:
        found = [*found[: len(found) // 2], _event(ERROR)]
    if "comments" in told:
        found = [b": mock\n\n" + event for event in found]
    return found


def _events(common: dict[str, Any], given: int, told: frozenset[str], *, asked: bool) -> Iterator[bytes]:
    chunk = {**common, "object": "chat.completion.chunk"}
    deltas = [{"role": "assistant", "content": ""}, *({"content": word + " "} for word in WORDS), {}]
    for place, delta in enumerate(deltas):
        finish = "stop" if not delta else None
        said = {**chunk, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
        if "usage-everywhere" in told:
            said["usage"] = counted(given, min(place, len(WORDS)))
        elif asked:
            said["usage"] = None
        yield _event(said)
    if asked:
        yield _event({**chunk, "choices": [], "usage": counted(given)})
    if "no-done" not in told:
        yield b"data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + _to_json(value) + b"\n\n"


def _to_json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
