"""Bounded work: each step of a meter is short, so that the event loop can run other tasks between."""

import gzip
import json
import logging
import zlib
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from os import environ
from typing import Any
from unittest.mock import patch

import pytest

from arbstr_asgi.protocols import meters, reply, sse, stream_meter
from arbstr_asgi.protocols.chat import ensure_stream_options, parse, with_model
from arbstr_asgi.protocols.json_edit import find_members
from arbstr_asgi.protocols.meter import Meter
from arbstr_asgi.protocols.meters import open_meter
from tests.support.sample_replies import BYE, DONE, HELLO, ONLY, USAGE, event, read, usage_only

MIB = 1024 * 1024
SSE = "text/event-stream"


def opened(encoding: str | None = None, content_type: str = SSE, *, strip: bool = True) -> Meter:
    """A meter."""
    return open_meter(content_type=content_type, content_encoding=encoding, strip=strip)


NULLS = b"data: {" + b'"usage":null,' * 12_000 + b'"choices":[{"index":0,"delta":{"content":"q"}}]}\n\n'
FLOODS = {
    "events": b"data:1\n\n" * 100_000,
    "lines": b"data:1\n" * 100_000 + b"\n",
    "lines that are events": b"data:{}\n" * 100_000,
    "null members": NULLS,
    "escaped keys": b"data: {" + b'"\\u0061":1,' * 90_000 + b'"usage":null}\n\n',
    "nesting": b'data: {"x":' + b"[" * 300_000 + b"]" * 300_000 + b"}\n\n",
    "arrays": b'data: {"choices":[' + b"[]," * 300_000 + b"1]}\n\n",
    "surrogates": b'data: {"x":"' + b"\\ud800" * 100_000 + b'","usage":null}\n\n',
    "invalid UTF-8": b'data: {"x":"' + b"\xff" * 500_000 + b'","usage":null}\n\n',
    "comments": b":\n" * 300_000,
    "fields": b"x\n" * 300_000 + b"\n",
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
@pytest.mark.parametrize("strip", [True, False])
@pytest.mark.parametrize("step", [3000, 10_000_000])
def test_slices(flood: bytes, strip: bool, step: int) -> None:
    """Whatever the size of a chunk, a step parses one slice, decodes at most 64 KiB, and parses few events."""
    decoded: list[int] = []
    parsed: list[int] = []

    def counted(calls: list[int], function: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
        def call(data: bytes) -> Any:
            calls.append(len(data))
            return function(data)

        return call

    meter = opened(strip=strip)
    with (
        patch.object(stream_meter, "decode", counted(decoded, reply.decode)),
        patch.object(stream_meter, "parse_block", counted(parsed, sse.parse_block)),
    ):
        out, sent, steps = [], HELLO + flood + BYE + DONE, 0
        for at in range(0, len(sent), step):
            out.append(meter.feed(sent[at : at + step]))
            while meter.pending:
                assert sum(decoded) + sum(parsed) <= 4 * 80 * 1024, "too much in one step"
                decoded.clear()
                parsed.clear()
                out.append(meter.resume())
                steps += 1
            assert sum(decoded) + sum(parsed) <= 4 * 80 * 1024, "too much in the last step"
            decoded.clear()
            parsed.clear()
        out.append(meter.finish())
    assert steps >= (len(sent) // 16_384 - 1 if step > 16_384 else 0)
    assert strip or b"".join(out) == sent
    assert meter.summary.finish_reason == "stop"


def test_nothing_is_delayed_that_passes() -> None:
    """Without `strip` a chunk is returned at once, and parsed afterwards."""
    sent = (HELLO * 1000) + BYE + ONLY + DONE
    meter = opened(strip=False)
    assert meter.feed(sent) is sent
    assert meter.pending
    assert meter.summary.usage is None
    while meter.pending:
        assert meter.resume() == b""
    assert meter.summary.usage is not None


def test_a_meter_that_is_not_resumed() -> None:
    """Without calls of `resume` no byte is lost or reordered: `finish` parses what is pending."""
    sent = (HELLO * 1000) + BYE + ONLY + DONE
    meter = opened()
    out = [meter.feed(sent[at : at + 50_000]) for at in range(0, len(sent), 50_000)]
    assert b"".join([*out, meter.finish()]) == sent.replace(ONLY, b"")
    assert meter.summary.usage is not None


def test_a_failure_with_something_pending() -> None:
    """A meter that fails in the middle of a chunk passes the rest of it."""
    sent = (HELLO * 1000) + DONE
    meter = opened()
    out = [meter.feed(sent)]
    with patch.object(stream_meter.EventMeter, "_process_buffer", side_effect=RuntimeError):
        out.append(meter.resume())
    assert not meter.pending
    assert b"".join([*out, meter.finish()]) == sent


BODIES = {
    "options": b'"stream_options":{' + b'"x":1,' * 170_000 + b'"y":"\\ud800","include_usage":null}',
    "repeated": b'"stream_options":{' + b'"include_usage":null,' * 40_000 + b'"y":"\\ud800","include_usage":null}',
    "surrogates": b'"stream_options":null,"x":"' + b"\\ud800" * 170_000 + b'"',
    "escaped keys": b'"stream_options":null,"y":"\\ud800",' + b'"\\u0061":1,' * 80_000 + b'"x":1',
    "parts": b'"y":"\\ud800","messages":[{"role":"user","content":['
    + b'{"type":"text","text":"a"},' * 36_000
    + b"1]}]",
}


@pytest.mark.parametrize("members", BODIES.values(), ids=BODIES)
def test_large_requests(members: bytes) -> None:
    """A request of a megabyte is decoded, never searched member by member."""
    body = b'{"model":"m","stream":true,' + members + b"}"
    with patch("arbstr_asgi.protocols.json_edit.find_members", wraps=find_members) as walked:
        request = parse(body)
        sent = ensure_stream_options(request)
        assert json.loads(with_model(sent, request, "other"))["model"] == "other"
    assert walked.call_count == 0
    found = json.loads(sent)["stream_options"]
    assert found["include_usage"] is True


def brotli(data: bytes) -> bytes:
    """Brotli's encoding."""
    packed: bytes = import_module("brotli").compress(data)
    return packed


def zstd(data: bytes) -> bytes:
    """Two frames of zstd."""
    library = import_module("compression.zstd" if find_spec("compression") else "backports.zstd")
    packed: bytes = library.compress(data[:100]) + library.compress(data[100:])
    return packed


def needs(module: str) -> pytest.MarkDecorator:
    """Skips where a library is missing, unless on CI."""
    missing = find_spec(module.partition(".")[0]) is None and not environ.get("CI")
    return pytest.mark.skipif(missing, reason=f"{module} is not installed")


PACKED = [
    pytest.param("gzip", lambda data: gzip.compress(data[:100]) + gzip.compress(data[100:]), id="gzip"),
    pytest.param("deflate", zlib.compress, id="deflate"),
    pytest.param("br", brotli, id="br", marks=needs("brotli")),
    pytest.param("zstd", zstd, id="zstd", marks=needs("backports.zstd")),
]


@pytest.mark.parametrize(("encoding", "pack"), PACKED)
@pytest.mark.parametrize("step", [1, 50, 10_000_000])
@pytest.mark.parametrize("content_type", [SSE, "application/json", ""])
def test_encodings(encoding: str, pack: Callable[[bytes], bytes], step: int, content_type: str) -> None:
    """An encoded response passes unchanged, and its decoded body is metered by its first bytes."""
    document = json.dumps({"choices": [{"index": 0, "finish_reason": "stop"}], "usage": USAGE}).encode()
    for body in (HELLO * 50 + BYE + ONLY + DONE, document):
        sent = pack(body)
        meter = opened(encoding, content_type)
        out = [read(meter, sent[at : at + step]) for at in range(0, len(sent), step)]
        assert b"".join(out) + meter.finish() == sent
        assert meter.summary.usage is not None
        assert meter.summary.usage.input_tokens == 11
        assert meter.summary.finished


@pytest.mark.parametrize(("encoding", "pack"), PACKED)
def test_decoding_in_slices(encoding: str, pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk that decodes to a hundred thousand events is decoded and parsed slice by slice."""
    monkeypatch.setattr(meters, "MAX_RATIO", 10**6)
    sizes: list[int] = []
    meter = opened(encoding)
    sent = pack(b"data:1\n\n" * 200_000 + BYE + ONLY + DONE)
    with patch.object(stream_meter.EventMeter, "feed", autospec=True, side_effect=stream_meter.EventMeter.feed) as fed:
        meter.feed(sent)
        while meter.pending:
            sizes.append(sum(len(call.args[1]) for call in fed.call_args_list))
            fed.reset_mock()
            meter.resume()
    assert max(sizes) <= 8 * 16_384
    assert meter.summary.usage is not None


@pytest.mark.parametrize(("encoding", "pack"), PACKED)
def test_bombs(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    """Decoding a decompression bomb stops early."""
    sent = pack(b" " * (64 * MIB))
    decoded = 0
    meter = opened(encoding, "application/json")

    def counted(self: stream_meter.EventMeter, chunk: bytes) -> bytes:
        nonlocal decoded
        decoded += len(chunk)
        return chunk

    with patch.object(stream_meter.EventMeter, "feed", counted):
        for at in range(0, len(sent), 1000):
            assert read(meter, sent[at : at + 1000]) == sent[at : at + 1000]
    assert decoded < 8 * MIB
    meter.finish()
    assert meter.summary.usage is None


@pytest.mark.parametrize("encoding", ["zstd", "br", "compress", "gzip, br", "x" * 10_000])
def test_missing_library(encoding: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that can not be decoded passes, with one warning that names the package and no text of the provider."""

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(meters, "import_module", missing)
    meters._find_decoder.cache_clear()
    try:
        for _ in range(3):
            meter = opened(encoding)
            assert meter.feed(b"\x00\x01") == b"\x00\x01"
            assert meter.finish() == b""
            assert meter.summary.finished
    finally:
        meters._find_decoder.cache_clear()
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert ("encodings" in warning.getMessage()) == (encoding in ("zstd", "br"))
    assert len(warning.getMessage()) < 250


@pytest.mark.parametrize(("encoding", "pack"), PACKED)
def test_not_that_encoding(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    """A body that is not encoded as its header says passes, and has no usage."""
    sent = b"\x81not at all encoded" * 10
    meter = opened(encoding)
    assert read(meter, sent) == sent
    meter.finish()
    assert meter.summary.usage is None
    meter = opened(encoding)
    meter.feed(pack(event(usage_only()))[:-3])
    assert not meter.abandon()
