"""Property tests: generated streams with the bytes expected for the client, at any chunk boundaries."""

import json
from itertools import pairwise
from typing import Any, NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from arbstr_asgi.protocols.json_edit import BOM
from arbstr_asgi.protocols.meter import Meter
from arbstr_asgi.protocols.meters import open_meter
from arbstr_asgi.protocols.reply import ReplySummary


class Piece(NamedTuple):
    """Part of a stream, and what the client gets of it when usage was asked for by us."""

    sent: bytes
    got: bytes


ENDS = st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b"\r"])
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
NULLS = ['"usage":null', '"usage": null', '"usage" :  null', '"us\\u0061ge":null', '"\\u0075sage":null']
CONTENTS = [
    " hello",
    "é\u2028\x85🙂",
    'says "usage":null and {"usage": null}',
    ',"usage":null}',
    "usage",
    "data: [DONE]\n\n",
    "\\u0075",
    "",
]


def compact(value: Any, *, ascii_only: bool = False) -> str:
    """JSON as providers write it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=ascii_only)


@st.composite
def null_members(draw: st.DrawFn) -> tuple[str, str]:
    """A chunk with null usage somewhere among its members, and the same without."""
    content = draw(st.sampled_from(CONTENTS))
    delta = {"content": content, "usage": draw(st.sampled_from([None, "usage", 3]))}
    choices = [{"index": 0, "delta": delta, "finish_reason": draw(st.sampled_from([None, None, "stop"]))}]
    members = [
        compact("id") + ":" + compact("c1"),
        compact("model") + ":" + compact(draw(st.sampled_from(["m", "usage"]))),
        compact("choices") + ":" + compact(choices, ascii_only=draw(st.booleans())),
    ]
    if draw(st.booleans()):
        members.append('"obfuscation":"CVQ5"')
    blank = draw(st.sampled_from(["", "", " ", "\t "]))
    kept = list(members)
    nulls = draw(st.lists(st.sampled_from(NULLS), min_size=0, max_size=2))
    places = sorted((draw(st.integers(0, len(members))) for _ in nulls), reverse=True)
    marked: list[tuple[str, bool]] = [(member, True) for member in kept]
    for place, null in zip(places, nulls, strict=True):
        marked.insert(place, (null, False))
    text = "{" + ("," + blank).join(member for member, _ in marked) + "}"
    without = "{" + ("," + blank).join(member for member, keep in marked if keep) + "}"
    return text, without


@st.composite
def chunks(draw: st.DrawFn) -> Piece:
    """An event with a chunk in it."""
    text, without = draw(null_members())
    end, last = draw(ENDS), draw(ENDS)
    if end == b"\r" and last == b"\n":  # would be one CRLF
        last = b"\r"
    field = draw(st.sampled_from([b"data: ", b"data:", b"data:  "]))
    before = draw(st.sampled_from([b"", b"", b"", b"event: message", b"id: 7", b"retry: 10"]))
    before = before and before + end
    return Piece(before + field + text.encode() + end + last, before + field + without.encode() + end + last)


@st.composite
def usage_only(draw: st.DrawFn) -> Piece:
    """An event that is there for its usage alone: gone, except for comments inside."""
    shape = {"id": "c1", "choices": [], "usage": {**USAGE, "completion_tokens": draw(st.integers(0, 9))}}
    if draw(st.booleans()):
        del shape["choices"]
    elif draw(st.booleans()):
        shape["choices"] = draw(st.sampled_from([None, "", {}]))
    if draw(st.booleans()):
        shape["error"] = None
    end, last = draw(
        st.sampled_from([(b"\n", b"\n"), (b"\r\n", b"\r\n"), (b"\r", b"\r"), (b"\n", b"\r\n"), (b"\r\n", b"\n")])
    )
    lines = [b"data: " + compact(shape).encode()]
    if draw(st.booleans()):
        text = json.dumps(shape, indent=1).encode()
        lines = [b"data: " + line for line in text.split(b"\n")]
    lines += draw(st.lists(st.sampled_from([b"event: usage", b"id: 3"]), max_size=1))
    comments = draw(st.lists(st.sampled_from([b": ping", b":"]), max_size=1))
    at = draw(st.integers(0, len(lines)))
    block = [*lines[:at], *comments, *lines[at:]]
    sent = end.join(block) + end + last
    return Piece(sent, end.join(comments) + end + last if comments else b"")


@st.composite
def others(draw: st.DrawFn) -> Piece:
    """What passes as it is."""
    end = draw(ENDS)
    text = draw(
        st.sampled_from(
            [
                b": OPENROUTER PROCESSING",
                b"data: not json",
                b'data: {"choices":[],"prompt_filter_results":[]}',
                b'data: {"choices":[],"error":{"type":"server_error","message":"x"},"usage":{"prompt_tokens":1}}',
                b'data: {"choices":[{"index":0,"delta":{"content":"\xff"}}]}',
                b'data: {"id":"c","choices":[{"index":0,"delta":{},"logprobs":NaN}]}',
                b"data: [1,2]",
                b"data: null",
                b"data:",
                b"data",
                b"retry: 3000",
                b"event: ping",
            ]
        )
    )
    return Piece(text + end + end, text + end + end)


@st.composite
def blank_lines(draw: st.DrawFn) -> Piece:
    """Keep-alives."""
    text = draw(st.sampled_from([b"\n", b"\n\n\n", b"\r\n", b"\r\n\r\n"]))
    return Piece(text, text)


@st.composite
def streams(draw: st.DrawFn) -> Piece:
    """A whole stream."""
    pieces = draw(st.lists(st.one_of(chunks(), chunks(), chunks(), usage_only(), others(), blank_lines()), max_size=8))
    end = draw(st.sampled_from([b"\n\n", b"\r\n\r\n", b"", b"\n"]))
    if draw(st.booleans()):
        pieces.append(Piece(b"data: [DONE]" + end, b"data: [DONE]" + end))
    bom = BOM if draw(st.integers(0, 9)) == 0 else b""
    kept: list[Piece] = []
    for piece in pieces:
        # A CR and a following LF would be read as one line end; that is another stream than the one meant here.
        if kept and kept[-1].sent.endswith(b"\r") and piece.sent.startswith(b"\n"):
            continue
        kept.append(piece)
    return Piece(bom + b"".join(p.sent for p in kept), bom + b"".join(p.got for p in kept))


def run(stream: bytes, cuts: list[int], *, strip: bool) -> tuple[bytes, Meter]:
    """What the client gets of a stream that arrives in pieces."""
    meter = open_meter(content_type="text/event-stream", content_encoding=None, strip=strip)
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    out = [meter.feed(stream[start:end]) for start, end in pairwise(edges)]
    return b"".join([*out, meter.finish()]), meter


def summary_fields(summary: ReplySummary) -> dict[str, Any]:
    """All fields of a summary."""
    return {name: getattr(summary, name) for name in ReplySummary.__slots__}


CUTS = st.lists(st.integers(0, 10_000), max_size=12)


@given(stream=streams(), cuts=st.lists(CUTS, min_size=2, max_size=6))
def test_stripped(stream: Piece, cuts: list[list[int]]) -> None:
    """The client gets the stream as without our include_usage, at any chunk boundaries."""
    whole, meter = run(stream.sent, [], strip=True)
    assert whole == stream.got
    for cut in [*cuts, list(range(len(stream.sent)))]:
        out, again = run(stream.sent, cut, strip=True)
        assert out == stream.got
        assert summary_fields(again.summary) == summary_fields(meter.summary)


@given(stream=streams(), cuts=CUTS)
def test_not_stripped(stream: Piece, cuts: list[int]) -> None:
    """Without `strip`, `feed` returns the same chunk objects, and the summary is the same."""
    out, meter = run(stream.sent, cuts, strip=False)
    assert out == stream.sent
    assert summary_fields(meter.summary) == summary_fields(run(stream.sent, [], strip=True)[1].summary)
    chunk = stream.sent
    other = open_meter(content_type="text/event-stream", content_encoding=None, strip=False)
    assert other.feed(chunk) is chunk


@given(noise=st.binary(max_size=200), stream=streams(), cuts=CUTS, strip=st.booleans())
def test_noise(noise: bytes, stream: Piece, cuts: list[int], strip: bool) -> None:
    """For any bytes nothing raises, and without `strip` all pass unchanged."""
    mixed = noise + stream.sent + noise
    out, _ = run(mixed, cuts, strip=strip)
    assert strip or out == mixed
    assert len(out) <= len(mixed)
    assert run(mixed, [], strip=strip)[0] == out


@given(stream=streams(), cuts=CUTS, at=st.integers(0, 10_000), strip=st.booleans())
def test_abandoned(stream: Piece, cuts: list[int], at: int, strip: bool) -> None:
    """When a stream breaks off, the client has a prefix of what it would have got, and knows whether it is whole."""
    sent = stream.sent[: at % (len(stream.sent) + 1)]
    meter = open_meter(content_type="text/event-stream", content_encoding=None, strip=strip)
    edges = [0, *sorted(cut % (len(sent) + 1) for cut in cuts), len(sent)]
    out = b"".join(meter.feed(sent[start:end]) for start, end in pairwise(edges))
    assert (stream.got if strip else sent).startswith(out)
    if meter.abandon():
        tail = out.removeprefix(BOM).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        block = tail.rpartition(b"\n\n")[2]
        assert all(not line or line.startswith(b":") for line in block.split(b"\n"))
