"""Token estimates of requests, and the texts of responses."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbstr_asgi import Provider, Rates
from arbstr_asgi.protocols.chat import ChatRequest, parse
from arbstr_asgi.protocols.prompt import MAX_OBJECTS, MAX_REPAIR_BYTES
from arbstr_asgi.protocols.token_estimate import (
    DEFAULT_OUTPUT_TOKENS,
    MAX_COUNT,
    Estimate,
    estimate_tokens,
    reply_texts,
)
from arbstr_asgi.protocols.usage import Usage
from arbstr_asgi.providers.pricing import cost, cost_estimate
from tests.unit.protocols.test_model_alias import bodies


def asked(rest: str) -> ChatRequest:
    """A request with these members, as they are."""
    return parse(f'{{"model":"m",{rest}}}'.encode())


def messages(*contents: str) -> str:
    """Messages with these contents."""
    return '"messages":[' + ",".join(f'{{"role":"user","content":{content}}}' for content in contents) + "]"


@pytest.mark.parametrize(
    ("rest", "tokens"),
    [
        (messages('"12345678"'), 2),
        (messages('"1234567"'), 1),
        (messages('"123"'), 1),
        (messages('""'), 1),
        (messages('"12345678"', '"12345678"', '"1234"'), 5),
        (messages('"' + "é" * 8 + '"'), 4),
        (messages('"' + "\\u00e9" * 8 + '"'), 4),
        (messages('"' + "\\n" * 8 + '"'), 2),
        (messages('"' + "\\ud83d\\ude00" * 8 + '"'), 8),
        (messages('"' + "\\ud83d" * 8 + '"'), 6),
        (messages('"' + "\\\\ud83d" * 8 + '"', '"\\ud83d"'), 12),
        (messages("null"), 1),
        (messages('"12345678"', "null"), 2),
        ('"messages":[{"role":"user"},{"content":"12345678"}]', 2),
        (messages('[{"type":"text","text":"hi"}]'), len('[{"type":"text","text":"hi"}]') // 4),
        (messages("12345678"), 2),
        (messages("true", '{"a":1}', "[]", "1"), (4 + 7 + 2 + 1) // 4),
        ('"x":1', 1),
        ('"messages":[]', 1),
        ('"messages":7,' + messages('"12345678"'), 2),
        (messages('"' + "1" * 400 + '"') + "," + messages('"12345678"'), 2),
        ('"m\\u0065ssages":[{"cont\\u0065nt":"12345678"}]', 2),
    ],
)
def test_input(rest: str, tokens: int) -> None:
    """A token for four bytes of content: text as the model reads it, everything else as its JSON; at least one."""
    assert estimate_tokens(asked(rest)).input_tokens == tokens


@pytest.mark.parametrize(
    "rest",
    [
        '"messages":7',
        '"messages":null',
        '"messages":{"content":"12345678"}',
        '"messages":["12345678"]',
        '"messages":[[]]',
        '"messages":[{},1]',
        messages('"\\ud83d' + "a" * MAX_REPAIR_BYTES + '"'),
        '"messages":[' + "{}," * MAX_OBJECTS + "{}]",
    ],
    ids=lambda rest: rest[:24],
)
def test_unreadable(rest: str) -> None:
    """Where the messages can not be decoded, the whole body counts."""
    padding = ',"x":"' + "p" * 400 + '"'
    try:
        request = asked(rest + padding)
    except Exception:  # too large for lone surrogates to pass
        request = ChatRequest(body=f'{{"model":"m",{rest}{padding}}}'.encode(), model="m", stream=False)
    assert estimate_tokens(request) == (len(request.body) // 4, DEFAULT_OUTPUT_TOKENS)


@pytest.mark.parametrize(
    ("rest", "tokens"),
    [
        ('"x":1', 256),
        ('"max_tokens":7', 7),
        ('"max_completion_tokens":9', 9),
        ('"max_tokens":7,"max_completion_tokens":9', 9),
        ('"max_tokens":7,"max_completion_tokens":null', 7),
        ('"max_tokens":1,"max_tokens":7', 7),
        (f'"max_tokens":{MAX_COUNT}', MAX_COUNT),
        ('"max_tokens":7,"x":"\\ud83d"', 7),
        ('"max_tokens":7,"messages":null', 7),
    ],
)
def test_output(rest: str, tokens: int) -> None:
    """As much as the client allows, and 256 where it does not say."""
    assert estimate_tokens(asked(rest)).output_tokens == tokens


@pytest.mark.parametrize(
    "value",
    ["-1", "-0", "0", "1.5", "7.0", "1e3", "true", '"7"', "null", "[7]", "{}", str(MAX_COUNT + 1), "9" * 5000, "1e999"],
)
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_hostile_limits(name: str, value: str) -> None:
    """A limit that is no count is ignored, and does not hide the other one."""
    other = "max_tokens" if name != "max_tokens" else "max_completion_tokens"
    assert estimate_tokens(asked(f'"{name}":{value}')).output_tokens == 256
    assert estimate_tokens(asked(f'"{name}":{value},"{other}":7')).output_tokens == 7


@given(body=bodies())
def test_never_raises(body: bytes) -> None:
    """Whatever can be parsed has an estimate of positive counts, no larger than the body."""
    estimate = estimate_tokens(parse(body))
    assert 1 <= estimate.input_tokens <= max(1, len(body) // 4)
    assert estimate.output_tokens == DEFAULT_OUTPUT_TOKENS


@given(contents=st.lists(st.one_of(st.none(), st.text()), max_size=4), ascii_only=st.booleans())
def test_texts(contents: list[str | None], ascii_only: bool) -> None:
    """The estimate is of the decoded text, however it was spelled."""
    value = {"model": "m", "messages": [{"role": "user", "content": content} for content in contents]}
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    size = sum(len((content or "").encode()) for content in contents)
    assert estimate_tokens(parse(body)).input_tokens == max(1, size // 4)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"input_rate": 10_000, "output_rate": 30_000, "base_fee": 1}, "3.5"),
        ({"input_rate": 0, "output_rate": 0}, "0"),
        ({"input_rate": 10_000, "output_rate": 30_000, "cached_input_rate": 1, "reasoning_rate": 1}, "2.5"),
        ({"input_rate": 10_000}, None),
        ({"output_rate": 30_000}, None),
        ({"base_fee": 5}, None),
    ],
)
def test_cost(facts: dict[str, Any], expected: str | None) -> None:
    """An estimate costs what the same counts would; where a rate is unknown, so is the cost."""
    estimate = Estimate(100, 50)
    wanted = None if expected is None else Decimal(expected)
    for rates in (Provider(name="a", url="http://h", **facts), Rates(**facts)):
        assert cost_estimate(estimate, rates) == wanted == cost(Usage(input_tokens=100, output_tokens=50), rates)


PIECES = ["The quick brown", " fox jumps", " over the lazy", " dog and", " runs away"]


def spoken(*choices: dict[str, Any], end: str = "\n\n") -> list[str]:
    """The texts of a stream of these choices."""
    found = reply_texts("".join(f"data: {json.dumps({'choices': [one]})}{end}" for one in choices).encode(), whole=True)
    assert found is not None
    return found.texts


@pytest.mark.parametrize(
    "choices",
    [
        [{"delta": {"content": piece}} for piece in PIECES],
        [{"delta": {"reasoning_content": piece, "reasoning": piece}} for piece in PIECES],
        [{"delta": {"content": piece, "reasoning_content": piece}} for piece in PIECES],
        [*({"delta": {"content": piece}} for piece in PIECES), {"delta": {}, "message": {"content": "".join(PIECES)}}],
        [*({"delta": {"content": piece}} for piece in PIECES), {"delta": {"content": "".join(PIECES)}}],
        [{"message": {"content": "".join(PIECES[: at + 1])}} for at in range(len(PIECES))],
        [
            {"delta": {"content": piece}, "message": {"content": "".join(PIECES[: at + 1])}}
            for at, piece in enumerate(PIECES)
        ],
        [{"text": piece} for piece in PIECES],
        [{"delta": {"content": piece}, "text": piece} for piece in PIECES],
    ],
)
@pytest.mark.parametrize("end", ["\n\n", "\n"])
def test_a_text_counts_once(choices: list[dict[str, Any]], end: str) -> None:
    """A text that occurs under several keys counts once."""
    assert spoken(*choices, end=end) == ["".join(PIECES)]


def test_what_is_said_twice_counts_twice() -> None:
    """A repeated text counts again, and so do two equal calls."""
    assert spoken(*[{"delta": {"content": "ha"}}] * 8) == ["ha" * 8]
    calls = [{"function": {"name": "f", "arguments": "{}"}}] * 2
    assert spoken({"delta": {"tool_calls": calls}}) == ["f{}f{}"]
    legacy = {"name": "f", "arguments": "{}"}
    assert spoken({"delta": {"tool_calls": calls[:1], "function_call": legacy}}) == ["f{}"]


def test_the_beginning_of_lines() -> None:
    """With an event per line, complete lines count."""
    kept = b"".join(b'data: {"choices":[{"delta":{"content":"ab"}}]}\n' for _ in range(3)) + b'data: {"choi'
    found = reply_texts(kept, whole=False)
    assert found is not None
    assert (found.texts, found.events) == (["ababab"], 3)
