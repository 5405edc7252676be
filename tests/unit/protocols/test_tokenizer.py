"""What of a request and of a reply counts as text for a model."""

import json
from typing import Any

import pytest

from arbstr_asgi.gateway.estimator import (
    MAX_BYTES,
    MAX_PLAIN_BYTES,
    MAX_REQUEST_BYTES,
    MAX_STREAM_BYTES,
    ReplySample,
    SampleBudget,
)
from arbstr_asgi.protocols import token_estimate


def request(*messages: Any, **more: Any) -> bytes:
    """A request's body."""
    return json.dumps({"model": "m", "messages": messages, **more}).encode()


def event(*choices: Any) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps({"choices": choices}).encode() + b"\n\n"


ASKED: list[tuple[bytes, list[str] | None, int]] = [
    (request(), [], 3),
    (request({"role": "user", "content": "Hi"}), ["Hi", "user"], 6),
    (request({"role": "user", "name": "al", "content": None}), ["user", "al"], 7),
    (request({"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]}), ["a", "b", "user"], 6),
    (request({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}), None, 0),
    (request({"role": "user", "content": [{"text": "a"}, {"text": 1}]}), None, 0),
    (request({"role": "user", "content": 7}), None, 0),
    (request({"role": "assistant", "tool_calls": [1]}), ["assistant", "[1]"], 6),
    (request(tools=[{"a": 1}]), ['[{"a": 1}]'], 3),
    (request({"role": 1, "content": "\ud83d"}), ["\ufffd"], 6),
    (b'{"model":"m"}', None, 0),
    (b'{"messages":"m"}', None, 0),
    (b"[]", None, 0),
    (b'{"messages":[' + b"[" * 10_000, None, 0),
]


@pytest.mark.parametrize(("body", "expected", "overhead"), ASKED)
def test_prompt_texts(body: bytes, expected: list[str] | None, overhead: int) -> None:
    """Messages count with their roles, names and calls, and tools too; what isn't text makes the whole unknown."""
    found = token_estimate.prompt_texts(body)
    assert found == (None if expected is None else token_estimate.PromptTexts(expected, overhead))


ANSWERED: list[tuple[bytes, bool, list[str] | None, int]] = [
    (event({"delta": {"role": "assistant", "content": ""}}) + event({"delta": {"content": "Hi"}}), True, ["Hi"], 2),
    (event({"delta": {"content": "H"}}) + b'data: {"choices":[{"delta":{"content":"i"}}]}', True, ["Hi"], 2),
    (event({"delta": {"content": "H"}}) + b'data: {"choices":[{"delta":{"content":"i"}}]}', False, ["H"], 1),
    (event({"delta": {"content": "a"}}) + b"data: [DONE]\n\n" + event({"delta": {"content": "b"}}), True, ["a"], 1),
    (b": ping\n\n" + event({"delta": {"content": "a"}}).replace(b"\n", b"\r\n"), True, ["a"], 1),
    (
        event({"index": 0, "delta": {"content": "a"}}, {"index": 1, "delta": {"content": "b"}}) * 2,
        True,
        ["aa", "bb"],
        2,
    ),
    (event({"index": [], "text": "old"}), True, ["old"], 1),
    (event({"delta": {"reasoning_content": "r", "content": "c"}}), True, ["cr"], 1),
    (event({"delta": {"content": [{"type": "text", "text": "p"}, {"text": 1}, 2]}}), True, ["p"], 1),
    (event({"delta": {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}, 1]}}), True, ["f{}"], 1),
    (event({"delta": {"function_call": {"name": "f"}}}), True, ["f"], 1),
    (b' {"choices":[{"message":{"content":"Hi","refusal":null}}]}', True, ["Hi"], 1),
    (b' {"choices":[{"message":{"content":"Hi"}}]}', False, None, 0),
    (b'{"error":{"message":"no"}}', True, None, 0),
    (b"<html>", True, None, 0),
    (b"", True, None, 0),
    (b"data: {\n\ndata: 7\n\n", True, None, 0),
    (event() + event(1, "x"), True, None, 0),
]


@pytest.mark.parametrize(("kept", "whole", "expected", "events"), ANSWERED)
def test_answered(kept: bytes, whole: bool, expected: list[str] | None, events: int) -> None:
    """All that a choice says counts: text, thoughts and calls; a reply without a choice says nothing."""
    found = token_estimate.reply_texts(kept, whole=whole)
    assert found == (None if expected is None else token_estimate.ReplyTexts(expected, events))


@pytest.mark.parametrize(("streaming", "limit"), [(True, MAX_STREAM_BYTES), (False, MAX_PLAIN_BYTES)])
def test_kept_is_bounded(streaming: bool, limit: int) -> None:
    """Of a reply the beginning is kept, and a request that is too large is not."""
    keeper = SampleBudget()
    kept = ReplySample(keeper, b"x" * (MAX_REQUEST_BYTES + 1), streaming=streaming)
    assert (kept.request, keeper.size) == (None, 0)
    for _ in range(limit // 1000 + 5):
        kept.add(b"y" * 1000)
    assert (len(kept.reply), keeper.size, kept.whole) == (limit, limit, False)
    kept.drop()
    kept.drop()
    assert (keeper.size, kept.request, kept.reply) == (0, None, b"")


def test_exactly_full_is_whole() -> None:
    """A reply that ends where the room does is kept wholly."""
    kept = ReplySample(SampleBudget(), b"r", streaming=True)
    kept.add(b"y" * MAX_STREAM_BYTES)
    assert kept.whole
    kept.add(b"y")
    assert not kept.whole


def test_kept_over_all_is_bounded() -> None:
    """Beyond the bound over all calls nothing more is kept, until something goes."""
    keeper = SampleBudget()
    many = [
        ReplySample(keeper, b"x" * MAX_REQUEST_BYTES, streaming=True) for _ in range(MAX_BYTES // MAX_REQUEST_BYTES)
    ]
    late = ReplySample(keeper, b"x", streaming=True)
    late.add(b"y")
    assert (late.request, late.reply, late.whole, keeper.size) == (None, b"", False, MAX_BYTES)
    many[0].drop()
    again = ReplySample(keeper, b"x", streaming=True)
    again.add(b"y")
    assert (again.request, again.reply) == (b"x", b"y")
    for kept in (*many, late, again):
        kept.drop()
    assert keeper.size == 0
