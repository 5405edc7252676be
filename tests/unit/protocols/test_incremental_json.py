"""Incremental parsing of a large JSON body gives the same summary as decoding all of it."""

import gzip
import json
import time
import tracemalloc
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from arbstr_asgi.protocols import body_meter, meters
from arbstr_asgi.protocols.incremental_json import MAX_NESTING
from arbstr_asgi.protocols.json_edit import BOM
from arbstr_asgi.protocols.json_excerpt import MAX_CHOICES, MAX_KEPT_BYTES, MAX_TEXT_BYTES
from arbstr_asgi.protocols.meters import open_meter
from arbstr_asgi.protocols.reply import ReplySummary, decode

MIB = 1024 * 1024
USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}
END = b'"usage":' + json.dumps(USAGE).encode() + b"}"


def facts(summary: ReplySummary) -> dict[str, Any]:
    """All fields of a summary."""
    return {name: getattr(summary, name) for name in ReplySummary.__slots__}


def by_whole(body: bytes) -> ReplySummary:
    """The summary by decoding the whole body, which counts as content as a large one does."""
    summary = ReplySummary()
    found = decode(body.removeprefix(BOM))
    if found is not None:
        summary.started, found.has_other_members = True, found.has_no_content
        summary.update_body(found)
    return summary


def by_pieces(*pieces: bytes) -> ReplySummary:
    """The summary by incremental parsing."""
    with patch.object(body_meter, "MAX_COPY_BYTES", len(BOM)):
        meter = body_meter.PlainMeter(ReplySummary())
        for piece in pieces:
            assert meter.feed(piece) is piece
        assert meter.finish() == b""
    return meter.summary


def sliced(body: bytes, size: int) -> list[bytes]:
    """Pieces of one size."""
    return [body[at : at + size] for at in range(0, len(body), size)]


def is_strict(body: bytes) -> bool:
    """Whether msgspec decodes the body; the lenient decoder rewrites the raw usage."""
    try:
        msgspec.json.decode(body.removeprefix(BOM))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


def assert_same(body: bytes, pieces: list[bytes]) -> None:
    """Both ways give the same summary."""
    got, expected = facts(by_pieces(*pieces)), facts(by_whole(body))
    for name in ("open_choices", "_closed_choices", "_zero_usage"):  # of no meaning to what is one document
        del got[name], expected[name]
    if not is_strict(body):
        for each in (got, expected):
            each["usage"] = each["usage"] and msgspec.structs.replace(each["usage"], raw_json=None)
    assert got == expected


# Replies, as text with everything odd that JSON allows.

blanks = st.sampled_from(["", "", "", " ", "\n", "\t\r\n  "])
HOSTILE = ['"', "\\", "{", "}", "[", "]", ":", ",", '"usage":{"prompt_tokens":99}', "é", "🙂", "\u2028", "\x7f"]
texts = st.lists(st.sampled_from([*HOSTILE, "word ", "x" * 3000]), max_size=6).map("".join)


@st.composite
def strings(draw: st.DrawFn, values: st.SearchStrategy[str] = texts) -> str:
    """A string, some of its letters as escapes."""
    text = json.dumps(draw(values), ensure_ascii=draw(st.booleans()))
    if draw(st.integers(0, 3)) == 0:
        inner = text[1:-1]
        at = draw(st.integers(0, len(inner)))
        if inner[at : at + 1].isalnum() and "\\" not in inner[max(at - 5, 0) : at]:
            inner = f"{inner[:at]}\\u{ord(inner[at]):04x}{inner[at + 1 :]}"
        text = f'"{inner}"'
    return text


numbers = st.sampled_from(
    ["0", "-0", "1", "7", "100", "0.0", "7.0", "-1", "1e2", "1E-2", "12345678901234567890", "2.5e+3"]
)
constants = st.sampled_from(["null", "true", "false"])
odd = st.sampled_from(["NaN", "-Infinity", "Infinity", '"\\ud800"', "1e999999999"])
scalars = st.one_of(strings(), numbers, constants)


@st.composite
def arrays(draw: st.DrawFn, elements: st.SearchStrategy[str], size: int = 4) -> str:
    """An array of such elements."""
    comma = draw(blanks) + "," + draw(blanks)
    return "[" + draw(blanks) + comma.join(draw(st.lists(elements, max_size=size))) + draw(blanks) + "]"


@st.composite
def objects(draw: st.DrawFn, **members: st.SearchStrategy[str]) -> str:
    """An object of such members, some twice, in any order, with others between."""
    names = draw(st.lists(st.sampled_from([*members, *members, "other", "", "usage", "é"]), max_size=6))
    found = []
    for name in names:
        value = draw(members.get(name, scalars))
        found.append(draw(strings(st.just(name))) + draw(blanks) + ":" + draw(blanks) + value)
    comma = draw(blanks) + "," + draw(blanks)
    return "{" + draw(blanks) + comma.join(found) + draw(blanks) + "}"


anything = st.recursive(
    st.one_of(scalars, scalars, scalars, scalars, odd),
    lambda inner: arrays(inner) | objects(a=inner, usage=inner),
    max_leaves=8,
)
details = objects(cached_tokens=numbers, reasoning_tokens=numbers)
usages = objects(
    prompt_tokens=numbers,
    completion_tokens=numbers,
    total_tokens=numbers,
    prompt_tokens_details=details | anything,
    completion_tokens_details=details | anything,
    cost=numbers | anything,
)
names = strings(st.sampled_from(["gpt-4o", "stop", "error", "", "é🙂", "length"]))
choices = objects(
    index=st.sampled_from(["0", "1", "null", "false", "0.0", '"0"']) | anything,
    finish_reason=names | anything,
    usage=usages | anything,
    message=objects(content=anything, role=names, tool_calls=anything) | anything,
    logprobs=anything,
)
errors = objects(type=names, code=st.sampled_from(["429", '"rate_limit"', "null"]) | anything, message=anything)
replies = objects(
    id=names | anything,
    model=names | anything,
    object=names | anything,
    service_tier=names | anything,
    type=names | anything,
    code=names | anything,
    error=errors | anything,
    choices=arrays(choices | anything, 3) | anything,
    usage=usages | usages | anything,
    x_groq=objects(usage=usages | anything) | anything,
)
bodies = st.builds(
    lambda bom, before, reply, after: bom + (before + reply + after).encode("utf-8", "surrogatepass"),
    st.sampled_from([b"", b"", BOM]),
    blanks,
    replies,
    blanks,
)


@given(bodies, st.lists(st.integers(0, 2**16), max_size=12))
@example(b'{"choices":[1,-', [])
@example(b'{"usage":{"prompt_tokens":1,"completion_tokens":0},"other":""}', [])
def test_as_the_whole(body: bytes, cuts: list[int]) -> None:
    """For any response and any chunk boundaries, the summary is that of the whole."""
    edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    assert_same(body, [body[a:b] for a, b in pairwise(edges)])


@given(bodies)
def test_as_the_whole_by_bytes(body: bytes) -> None:
    """The same when every byte comes alone."""
    assert_same(body, sliced(body, 1))


@given(
    bodies,
    st.integers(0, 2**16),
    st.integers(0, 2),
    st.sampled_from(
        [b"", b'"', b",", b":", b"]", b"}", b"{", b"[", b"\\", b"\x00", b"\n", b"\xff", b"0", b"-", b"e", b"x"]
    ),
    st.integers(1, 2**16),
)
def test_broken_as_the_whole(body: bytes, at: int, gone: int, more: bytes, size: int) -> None:
    """A response with a byte too many or too few has the summary of the whole, an empty one unless it is still JSON."""
    at %= len(body) + 1
    body = body[:at] + more + body[at + gone :]
    assert_same(body, sliced(body, size % len(body) + 1 if body else 1))


@given(bodies, st.integers(0, 2**16), st.integers(1, 100))
def test_cut_short(body: bytes, end: int, size: int) -> None:
    """A partial response has no usage."""
    cut = body[: end % len(body)].rstrip(b" \t\r\n")
    if cut.endswith(b"}") and is_strict(cut):
        return  # only blanks are gone
    assert_same(cut, sliced(cut, size))


def large(message: bytes) -> bytes:
    """A reply with this message, and a usage behind it."""
    return b'{"id":"x","model":"m","choices":[{"index":0,"message":' + message + b',"finish_reason":"stop"}],' + END


ENTRY = {"token": " word", "logprob": -0.00123, "bytes": [32, 119], "top_logprobs": [{"token": " w", "bytes": [1]}] * 5}
SHAPES = {
    "text": b'"' + b"x" * (8 * MIB) + b'"',
    "structure in a text": b'"' + b'}]}{[\\"\\\\,:' * (MIB // 4) + b'"',
    "escapes": b'"' + b"\\n" * MIB + b'"',
    "texts": b"[" + b",".join([b'"' + b"x" * 65_536 + b'"'] * 64) + b"]",
    "logprobs": b'{"content":[' + b",".join([json.dumps(ENTRY).encode()] * 4000) + b"]}",
    "indented": json.dumps({"content": [ENTRY] * 2000}, indent=2).encode(),
    "numbers": b"[" + b",".join([b"1"] * (MIB // 2)) + b"]",
    "empty arrays": b"[" + b",".join([b"[]"] * (MIB // 3)) + b"]",
    "lists of numbers": b"[" + b",".join([b"[[" + b",".join([b"1"] * 300) + b"]]"] * 1700) + b"]",
    "members": b"{" + b",".join([b'"a":1'] * (MIB // 6)) + b"}",
    "blanks": b"[" + b" " * (8 * MIB) + b"]",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_large(shape: str) -> None:
    """Responses of many MiB have the summary of the whole, in at most 64 KiB of memory and an allowance."""
    body = large(SHAPES[shape])
    pieces = sliced(body, 16_384)
    tracemalloc.start()
    try:
        summary = by_pieces(*pieces)
        assert tracemalloc.get_traced_memory()[1] < 400_000
    finally:
        tracemalloc.stop()
    assert facts(summary) == facts(by_whole(body))
    assert summary.usage is not None


@pytest.mark.parametrize(
    "deep",
    [
        b"[" + b",".join([b"[" * 700 + b"]" * 700] * 2000) + b"]",
        b"[" + b",".join([b'{"a":' * 9 + b"1" + b"}" * 9] * 50_000) + b"]",
        b'{"id":' * 2 + b"1" + b"}" * 2,
    ],
    ids=["arrays", "objects", "shallow"],
)
def test_time_of_a_piece(deep: bytes) -> None:
    """Each piece of a body takes milliseconds; a body that would take longer is not parsed, and counts as finished."""
    meter = body_meter.PlainMeter(ReplySummary())
    worst = 0.0
    for piece in sliced(large(deep), 16_384):
        start = time.thread_time()
        meter.feed(piece)
        worst = max(worst, time.thread_time() - start)
    meter.finish()
    assert worst < 0.25  # 5 ms; 50 ms and more without the limit
    assert meter.summary.finished
    assert (meter.summary.usage is None) == (len(deep) > MIB)


def test_small_pieces_of_a_long_text() -> None:
    """The time for a piece of a text does not grow with the pieces before."""
    body = large(b'"' + b"ab\\n" * 50_000 + b'"')
    start = time.process_time()
    assert facts(by_pieces(*sliced(body, 1))) == facts(by_whole(body))
    assert time.process_time() - start < 10  # 0.4 s


def test_nesting() -> None:
    """Nesting beyond the limit of the decoders is rejected, slightly less is parsed."""
    for depth, read in ((MAX_NESTING - 20, True), (20_000, False)):
        body = large(b"[" * depth + b"]" * depth)
        summary = by_pieces(*sliced(body, 16_384))
        assert facts(summary) == facts(by_whole(body))
        assert (summary.usage is not None) == read


def test_long_names() -> None:
    """A text of more than 4 KiB is ignored, and the other fields are kept."""
    long = b'"' + b"m" * MIB + b'"'
    body = b'{"id":' + long + b',"model":' + long + b',"error":' + long + b"," + END
    for size in (100, 16_384, len(body)):
        summary = by_pieces(*sliced(body, size))
        assert (summary.id, summary.model, summary.error) == (None, None, "error")
        assert summary.usage is not None
    body = b'{"model":"' + b"m" * (MAX_TEXT_BYTES - 2) + b'",' + END
    assert facts(by_pieces(*sliced(body, 100))) == facts(by_whole(body))


def test_raw_usage_is_the_providers() -> None:
    """The raw usage keeps its white space, numbers and order; one of more than 4 KiB is not kept."""
    raw = b'{ "prompt_tokens" : 7,\n"total_tokens":9.0, "z":1e2,"a":"\\u00e9" }'
    body = b'{"x":"' + b"x" * 10_000 + b'","usage":' + raw + b',"choices":[NaN]}'
    summary = by_pieces(*sliced(body, 11))
    assert summary.usage is not None
    assert summary.usage.raw_json == raw.decode()
    padded = b'{"x":1,"usage":{"prompt_tokens":7,"pad":"' + b"p" * 8000 + b'"}}'
    assert facts(by_pieces(*sliced(padded, 999))) == facts(by_whole(padded))


@pytest.mark.parametrize(
    "body",
    [
        b'{"usage":{"prompt_tokens":7,"pad":"' + b"p" * MAX_KEPT_BYTES + b'"}}',
        b'{"usage":{"prompt_tokens":' + b"7" * MIB + b"}}",
        b"{" + b",".join([b'"model":"m"'] * 200_000) + b"," + END,
    ],
    ids=["usage", "number", "names"],
)
def test_too_much(body: bytes) -> None:
    """Fields above the limit of memory stop the parser: no usage, and the response counts as finished."""
    summary = by_pieces(*sliced(body, 5000))
    assert summary.usage is None
    assert summary.finished


def test_many_choices() -> None:
    """Choices beyond the first 128 are skipped, and take no memory."""
    one = b'{"index":1,"message":{"content":"x"},"finish_reason":"length"}'
    body = b'{"choices":[' + b",".join([one] * 50_000) + b',{"index":0,"finish_reason":"stop"}],' + END
    summary = by_pieces(*sliced(body, 16_384))
    assert summary.usage is not None
    assert summary.finish_reason is None
    body = b'{"choices":[' + b",".join([one] * (MAX_CHOICES - 1)) + b',{"index":0,"finish_reason":"stop"}],' + END
    assert by_pieces(*sliced(body, 16_384)).finish_reason == "stop"


def test_copy_up_to_its_limit() -> None:
    """A body is read from a copy up to 64 KiB and by pieces beyond, a BOM in front or not, in one chunk or many."""
    for size in (body_meter.MAX_COPY_BYTES, body_meter.MAX_COPY_BYTES + 1, 3 * body_meter.MAX_COPY_BYTES):
        for bom in (b"", BOM):
            body = bom + large(b'""')
            body += b" " * (size - len(body))
            for step in (1000, size):
                meter = body_meter.PlainMeter(ReplySummary())
                for piece in sliced(body[:2], 1) + sliced(body[2:], step):
                    meter.feed(piece)
                meter.finish()
                assert facts(meter.summary) == facts(by_whole(body))


def test_a_bug_in_the_incremental_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug of ours leaves the body alone."""

    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("arbstr_asgi.protocols.incremental_json.IncrementalReader.feed", broken)
    body = large(b'""')
    summary = by_pieces(*sliced(body, 10))
    assert (summary.usage, summary.finished) == (None, True)


def encoded(body: bytes, size: int = 16_384) -> ReplySummary:
    """What is learned of a gzipped body."""
    meter = open_meter(content_type="application/json", content_encoding="gzip", strip=False)
    for piece in sliced(body, size):
        assert meter.feed(piece) == piece
    meter.finish()
    return meter.summary


@pytest.mark.parametrize("shape", ["logprobs", "structure in a text", "numbers"])
def test_large_and_encoded(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large compressed reply is read as it is decoded, however it is cut."""
    monkeypatch.setattr(meters, "MAX_RATIO", 10_000)  # what is all the same shrinks more than text does
    body = large(SHAPES[shape])
    for size in (5000, 10 * MIB):
        assert facts(encoded(gzip.compress(body, 1), size)) == facts(by_whole(body))


def test_bomb_in_slices() -> None:
    """What decodes to a thousand times its size is not decoded far, and never in one piece."""
    sent = gzip.compress(large(b" " * (200 * MIB) + b"1"), 1)
    tracemalloc.start()
    try:
        start = time.process_time()
        summary = encoded(sent, len(sent))
        assert time.process_time() - start < 5  # 0.05 s
        assert tracemalloc.get_traced_memory()[1] < 3 * MIB
    finally:
        tracemalloc.stop()
    assert (summary.usage, summary.finished) == (None, True)


def test_decoded_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a bound on all that is decoded of one reply."""
    body = gzip.compress(large(b'"' + bytes(range(32, 33)) * 300_000 + b'"'), 1)
    monkeypatch.setattr(meters, "MAX_DECODED_BYTES", 310_000)
    assert encoded(body, 100).usage is not None
    monkeypatch.setattr(meters, "MAX_DECODED_BYTES", 290_000)
    assert (encoded(body, 100).usage, encoded(body, 100).finished) == (None, True)
