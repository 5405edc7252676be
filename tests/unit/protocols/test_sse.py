"""Server-sent events as the WHATWG HTML standard (9.2.6) reads them; the examples are the standard's own."""

from itertools import pairwise

import pytest

from arbstr_asgi.protocols.meters import open_meter
from arbstr_asgi.protocols.reply import ReplySummary
from arbstr_asgi.protocols.sse import parse_block

# The standard's examples: a stream and the data of the events that it dispatches.
EXAMPLES = [
    (b"data: YHOO\ndata: +2\ndata: 10\n\n", [b"YHOO\n+2\n10"]),
    (
        b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
        [b"first event", b"second event", b" third event"],
    ),
    (b"data\n\ndata\ndata\n\ndata:", [b"", b"\n", b""]),
    (b"data:test\n\ndata: test\n\n", [b"test", b"test"]),
    (b"event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\n", [b"73857293", b"2153"]),
    (b"\xef\xbb\xbfdata: bom\n\n\xef\xbb\xbfdata: no field\n\n", [b"bom"]),
    (b"id: 1\nretry: 5\n\n", []),
    (b"data:a\rdata:b\r\ndata:c\n\r\n", [b"a\nb\nc"]),
    ("data: \u2028\x0b\x0c\x85\n\n".encode(), ["\u2028\x0b\x0c\x85".encode()]),
    (b"dat: x\ndata x\n data: y\nDATA: z\n\n", []),
]


def dispatched(stream: bytes, cuts: list[int]) -> tuple[ReplySummary, bytes]:
    """What a meter reads of a stream that arrives in these pieces, and lets through."""
    meter = open_meter(content_type="text/event-stream", content_encoding=None, strip=True)
    edges = [0, *cuts, len(stream)]
    out = [meter.feed(stream[start:end]) for start, end in pairwise(edges)]
    return meter.summary, b"".join([*out, meter.finish()])


@pytest.mark.parametrize(("stream", "events"), EXAMPLES)
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_examples(stream: bytes, events: list[bytes], end: bytes) -> None:
    """The standard's examples dispatch what it says, with any line end, cut at every byte and every pair of bytes."""
    if b"\r" not in stream:
        stream = stream.replace(b"\n", end)
    length = len(stream)
    cuts = [[], list(range(1, length)), *([at] for at in range(length)), *([at, at + 1] for at in range(length - 1))]
    for cut in cuts:
        summary, out = dispatched(stream, cut)
        assert summary.events == len(events)
        assert out == stream


@pytest.mark.parametrize(
    ("block", "data", "name"),
    [
        (b"data: a\n\n", b"a", b""),
        (b"data:a\n\n", b"a", b""),
        (b"data:  a \n\n", b" a ", b""),
        (b"data\n\n", b"", b""),
        (b"data:\n\n", b"", b""),
        (b"event: error\r\ndata: a\r\ndata: b\r\n\r\n", b"a\nb", b"error"),
        (b"data: a\r: c\rdata: b\r\r", b"a\nb", b""),
        (b": c\nid: 1\nretry: 1\n\n", None, b""),
        (b"data : a\n\n", None, b""),
        (b"data: a:b: c\n\n", b"a:b: c", b""),
        (b"data: a", b"a", b""),
    ],
)
def test_fields(block: bytes, data: bytes | None, name: bytes) -> None:
    """A block's fields are read as the standard says; where there is one data line its range is known."""
    found = parse_block(block)
    assert (found.data, found.event) == (data, name)
    if found.start >= 0:
        assert block[found.start : found.end] == data


def test_flood_of_blank_lines() -> None:
    """400,000 blank lines dispatch nothing and don't hide the event behind them."""
    for end in (b"\n", b"\r\n", b"\r"):
        summary, out = dispatched(end * 400_000 + b"data: [DONE]\n\n", [100_000, 300_001])
        assert summary.seen_done
        assert len(out) == 400_000 * len(end) + 14
