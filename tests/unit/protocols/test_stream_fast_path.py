"""The fast path: events that differ from a template only in their text."""

import json
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbstr_asgi.protocols import stream_fast_path
from arbstr_asgi.protocols.reply import ReplySummary
from arbstr_asgi.protocols.stream_fast_path import EventTemplate
from arbstr_asgi.protocols.stream_meter import EventMeter

PLACES = ("content", "reasoning_content", "reasoning")
USUAL = b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{"content":" word"}}],"usage":null}\n\n'


def event(delta: dict[str, Any], rest: dict[str, Any], *, ascii_only: bool = True, spaced: bool = False) -> bytes:
    """One event as some provider writes it."""
    document = {"id": "c", "model": "m", "choices": [{"index": 0, "delta": delta}], **rest}
    separators = (", ", ": ") if spaced else (",", ":")
    return f"data: {json.dumps(document, ensure_ascii=ascii_only, separators=separators)}\n\n".encode(
        "utf-8", "replace"
    )


texts = st.text(max_size=12) | st.sampled_from(['"', "\\", '","usage":null,"x":"', "\n\ndata: {}", "usage", "word"])
deltas = st.dictionaries(st.sampled_from((*PLACES, "role")), texts | st.none(), max_size=2)
rests = st.fixed_dictionaries(
    {},
    optional={
        "usage": st.none() | st.just({"prompt_tokens": 1, "completion_tokens": 2}),
        "obfuscation": texts,
        "created": st.integers(0, 3),
        "error": st.none() | st.just({"code": "x"}),
        "service_tier": st.sampled_from(["default", "flex"]),
    },
)
streams = st.lists(st.builds(event, deltas, rests, ascii_only=st.booleans(), spaced=st.booleans()), max_size=12)


def run(chunks: list[bytes], *, strip: bool, lessons: int) -> tuple[bytes, dict[str, Any]]:
    """The bytes for the client and the summary."""
    with patch.object(stream_fast_path, "MAX_TEMPLATES", lessons):
        meter = EventMeter(ReplySummary(), strip=strip)
    out = b"".join(meter.feed(chunk) for chunk in chunks) + meter.finish()
    return out, {name: getattr(meter.summary, name) for name in ReplySummary.__slots__}


@given(streams, st.booleans(), st.lists(st.integers(1, 400), max_size=6), st.randoms(use_true_random=False))
def test_templates_change_nothing(blocks: list[bytes], strip: bool, cuts: list[int], random: Any) -> None:
    """With and without templates, a stream gives the same bytes and summary, at any chunk boundaries."""
    stream = [event({"content": "a"}, {}), *blocks, *random.sample(blocks, len(blocks)), *blocks]
    whole = b"".join(stream)
    ends = [0, *sorted({min(cut, len(whole)) for cut in cuts}), len(whole)]
    pieces = [whole[start:end] for start, end in pairwise(ends) if start < end]
    expected = run(stream, strip=strip, lessons=0)
    assert run(stream, strip=strip, lessons=stream_fast_path.MAX_TEMPLATES) == expected
    assert run(pieces, strip=strip, lessons=stream_fast_path.MAX_TEMPLATES) == expected


@pytest.mark.parametrize("strip", [True, False])
def test_fills(strip: bool) -> None:
    """An event with another text matches the template, and loses its null usage if `strip`."""
    template = EventTemplate.create(USUAL, strip=strip)
    assert template is not None
    other = USUAL.replace(b" word", rb"\n\"quoted\" \u00e9 " + "é".encode())
    assert template.match(other) == (other.replace(b',"usage":null', b"") if strip else other)


@pytest.mark.parametrize(
    "other",
    [
        USUAL.replace(b" word", b'","x":"'),
        USUAL.replace(b" word", b"\\"),
        USUAL.replace(b" word", b"a\nb"),
        USUAL.replace(b"null}", b"{}}"),
        USUAL.replace(b'"m"', b'"n"'),
        USUAL[:-1],
        USUAL * 2,
        USUAL + b": ping\n\n",
    ],
)
def test_fits_nothing_else(other: bytes) -> None:
    """An event that differs in more than its text does not match."""
    template = EventTemplate.create(USUAL, strip=True)
    assert template is not None
    assert template.match(other) is None


def test_padding_is_text() -> None:
    """OpenAI's padding differs from event to event, and in length."""
    block = event({"content": " word"}, {"usage": None, "obfuscation": "CVQ55DocFW"})
    template = EventTemplate.create(block, strip=True)
    assert template is not None
    other = event({"content": "s"}, {"usage": None, "obfuscation": "x"})
    assert template.match(other) == other.replace(b',"usage":null', b"")


def test_several_events_in_a_chunk() -> None:
    """A chunk of several usual events is several events."""
    first = USUAL.replace(b',"usage":null', b"")
    meter = EventMeter(ReplySummary(), strip=True)
    for chunk in (USUAL, USUAL, USUAL * 3):
        assert meter.feed(chunk) == chunk.replace(USUAL, first)
    assert meter.summary.events == 5


@pytest.mark.parametrize(
    "block",
    [
        event({"content": "m"}, {}),  # the model's name, too
        event({"content": ""}, {}),
        event({"role": "assistant"}, {}),
        event({"content": "a"}, {"choices": []}),
        b"data: {broken}\n\n",
    ],
)
def test_no_template(block: bytes) -> None:
    """An event with an ambiguous text makes no template."""
    assert EventTemplate.create(block, strip=True) is None
