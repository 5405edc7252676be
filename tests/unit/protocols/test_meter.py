"""The meter: what it reads from each provider's stream, what it removes, and what it never changes."""

import gzip
import json
import zlib
from typing import Any

import pytest

from arbstr_asgi.protocols import body_meter, meters, stream_fast_path, stream_meter
from arbstr_asgi.protocols.meter import Meter
from arbstr_asgi.protocols.meters import open_meter
from arbstr_asgi.protocols.reply import ReplySummary
from arbstr_asgi.protocols.stream_fast_path import FastPath
from tests.support.sample_replies import BYE, DONE, HELLO, ONLY, STREAMS, USAGE, Stream, chunk, event, read

SSE = "text/event-stream; charset=utf-8"


def meter(content_type: str = SSE, *, strip: bool = True, **more: Any) -> Meter:
    """A meter as the gateway opens it."""
    return open_meter(**{"content_type": content_type, "content_encoding": None, "strip": strip, **more})


def run(body: bytes, size: int | None = None, content_type: str = SSE, **more: Any) -> tuple[bytes, ReplySummary]:
    """What the client gets of a body that comes in pieces of `size` bytes."""
    one = meter(content_type, **more)
    step = size or max(len(body), 1)
    out = [read(one, body[at : at + step]) for at in range(0, len(body), step)]
    return b"".join([*out, one.finish()]), one.summary


def reported(summary: ReplySummary) -> dict[str, Any]:
    """The known fields of a summary."""
    facts: dict[str, Any] = {
        "finish_reason": summary.finish_reason,
        "error": summary.error,
        "final": summary.usage_is_final if summary.usage else None,
        "complete": summary.finished,
    }
    if summary.usage is not None:
        facts |= {name: getattr(summary.usage, name) for name in summary.usage.__struct_fields__ if name != "raw_json"}
        facts["additive"] = facts.pop("reasoning_is_additive") or None
        for name in ("unlisted_input_tokens", "unlisted_output_tokens", "is_contradictory"):
            facts[name] = facts[name] or None
    return {name: value for name, value in facts.items() if value is not None}


@pytest.mark.parametrize("size", [None, 1, 7], ids=["whole", "by byte", "by seven"])
@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.name)
def test_stream(stream: Stream, size: int | None) -> None:
    """Each provider's stream is summarised correctly, and loses exactly what our include_usage adds."""
    out, summary = run(stream.sent, size)
    assert out == stream.got
    expected = {name: value for name, value in stream.reported.items() if value is not None and name != "done"}
    if summary.usage is None:
        expected.pop("final", None)
    assert reported(summary) == expected
    assert summary.seen_done == (stream.reported.get("done", b"[DONE]" in stream.sent))


@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.name)
def test_untouched(stream: Stream) -> None:
    """Without `strip` every byte passes."""
    assert run(stream.sent, 5, strip=False)[0] == stream.sent


def test_lean_and_full_path_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast path returns the same bytes and summary as full parsing."""
    body = (
        HELLO + event(chunk("hi", usage=None)) * 3 + event(chunk("x", usage=None, obfuscation="a")) + BYE + ONLY + DONE
    )
    short = run(body, 301)
    monkeypatch.setattr(FastPath, "event", lambda self, block: None)
    full = run(body, 301)
    assert short[0] == full[0]
    assert all(getattr(short[1], name) == getattr(full[1], name) for name in ReplySummary.__slots__)


def test_events_pass_as_they_complete() -> None:
    """A complete event is sent before the next byte arrives; only an incomplete one is buffered."""
    one = meter()
    assert read(one, HELLO[:-1]) == b""
    assert read(one, b"\n") == HELLO
    assert read(one, b": ping\n") == b": ping\n"
    assert read(one, b"\n\n") == b"\n\n"
    assert read(one, HELLO + BYE[:5]) == HELLO


def test_large_event_passes() -> None:
    """An event above MAX_EVENT_BYTES passes unchanged, and the next one is metered again."""
    large = event(chunk("x" * 2 * stream_meter.MAX_EVENT_BYTES, usage=None))
    for size in (None, 65_536, 300_001):
        out, summary = run(HELLO + large + event(chunk("y", usage=None)) + BYE + ONLY + DONE, size)
        assert out == HELLO + large + event(chunk("y")) + BYE + DONE
        assert summary.usage is not None
    one = meter()
    passed = sum(len(read(one, large[at : at + 65_536])) for at in range(0, len(large) - 65_536, 65_536))
    assert passed >= len(large) - 2 * 65_536
    assert not one.abandon()


def test_abandon() -> None:
    """`abandon` is True if the partial event was buffered, False if a part of it was sent."""
    for strip, between in ((True, True), (False, False)):
        one = meter(strip=strip)
        read(one, HELLO + BYE[:9])
        assert one.abandon() is between
    for strip in (True, False):
        one = meter(strip=strip)
        read(one, HELLO + b": ping\n\n")
        assert one.abandon()
    assert not meter("application/json").abandon()


@pytest.mark.parametrize("where", ["decode", "parse_block", "without_null_usage"])
@pytest.mark.parametrize("size", [None, 1, 40])
def test_failure_passes_everything(
    where: str, size: int | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A meter that fails passes every byte, buffered ones included, and logs nothing of the response."""

    def broken(*args: Any, **more: Any) -> Any:
        raise RuntimeError("secret")

    body = HELLO + event(chunk("hi", usage=None)) + BYE + ONLY + DONE
    monkeypatch.setattr(stream_meter, where, broken)
    monkeypatch.setattr(stream_fast_path, where, broken, raising=False)
    assert run(body, size)[0] == body
    assert "secret" not in caplog.text
    assert "metering failed with RuntimeError" in caplog.text
    one = meter()
    read(one, HELLO)
    read(one, event(chunk("hi", usage=None)))
    assert not one.abandon()


def test_failure_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure on the last event or on a JSON body loses the usage only."""

    def broken(*args: Any) -> Any:
        raise RuntimeError

    monkeypatch.setattr(stream_meter.EventMeter, "_process_event", broken)
    assert run(b"data: [DONE]")[0] == b"data: [DONE]"
    monkeypatch.setattr(body_meter, "decode", broken)
    out, summary = run(b"{}", content_type="application/json")
    assert (out, summary.finished) == (b"{}", False)


def test_plain_body() -> None:
    """A JSON response passes unchanged and is parsed at its end, also behind blank lines."""
    body = (
        b"\n\n"
        + json.dumps(
            {
                **chunk(),
                "choices": [{"message": {"content": "x"}, "finish_reason": "stop"}],
                "usage": USAGE,
                "service_tier": "flex",
            }
        ).encode()
    )
    out, summary = run(body, 3, "application/json")
    assert out == body
    assert summary.usage is not None
    assert json.loads(summary.usage.raw_json or "") == USAGE
    assert (summary.model, summary.id, summary.service_tier, summary.finished) == ("m-1", "chatcmpl-1", "flex", True)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"usage":{"prompt_tokens":11', b"<html>", b'"x"'])
def test_not_a_completion(body: bytes) -> None:
    """A body that is no JSON object has no usage, and is not finished."""
    out, summary = run(body, 2, "application/json")
    assert out == body
    assert summary.usage is None
    assert not summary.finished


@pytest.mark.parametrize("size", [None, 1, 3])
@pytest.mark.parametrize("start", [b"", b"\n\n", b"\xef\xbb\xbf", b": hi\n\n", b"event: x\n\n"])
def test_stream_under_another_name(start: bytes, size: int | None) -> None:
    """A stream with the content type of JSON is metered as a stream."""
    body = start + HELLO + BYE + ONLY + DONE
    out, summary = run(body, size, "application/json")
    assert out == start + HELLO + BYE + DONE
    assert summary.usage is not None
    assert run(body, size, "application/json", strip=False)[0] == body


@pytest.mark.parametrize("body", [b"{}", b'\n{"error":"x"}', b"d", b"da", b"\xef\xbb", b"", b"\n", b"dark"])
@pytest.mark.parametrize("strip", [True, False])
def test_no_stream_after_all(body: bytes, strip: bool) -> None:
    """A response that is no stream passes whole, however short."""
    for size in (None, 1):
        assert run(body, size, "application/json", strip=strip)[0] == body


def test_sniffing_abandoned() -> None:
    """Buffered bytes too few to decide the format are dropped when the response breaks off."""
    one = meter("application/json")
    assert read(one, b"da") == b""
    assert not one.abandon()
    one = meter("application/json")
    assert read(one, b"da") == b""
    assert read(one, b"ta: [DONE]\n\n") == b"data: [DONE]\n\n"
    assert one.abandon()


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "GZIP "])
@pytest.mark.parametrize("content_type", [SSE, "application/json"])
def test_encoded(encoding: str, content_type: str) -> None:
    """A compressed response passes unchanged and is metered."""
    body = HELLO + BYE + ONLY + DONE if content_type == SSE else json.dumps({"usage": USAGE}).encode()
    packed = zlib.compress(body) if encoding == "deflate" else gzip.compress(body)
    out, summary = run(packed, 7, content_type, content_encoding=encoding)
    assert out == packed
    assert summary.usage is not None
    one = meter(content_type, content_encoding=encoding)
    read(one, packed)
    assert not one.abandon()


@pytest.mark.parametrize(
    ("body", "encoding"), [(b"not gzip", "gzip"), (b"\x00\x01", "br"), (gzip.compress(b"x" * 10**6), "gzip")]
)
def test_encoding_that_cannot_be_read(body: bytes, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body with an unknown or wrong encoding, or a decompression bomb, passes unchanged and has no usage."""
    monkeypatch.setattr(meters, "MAX_DECODED_BYTES", 1000)
    out, summary = run(body, 3, content_encoding=encoding)
    assert out == body
    assert summary.usage is None


@pytest.mark.parametrize("strip", [True, False])
@pytest.mark.parametrize("size", [None, 1, 50])
def test_before_done(strip: bool, size: int | None) -> None:
    """The bytes of `before_done` are inserted once, before [DONE], and are made with the usage known."""
    out, _ = run(
        HELLO + BYE + ONLY + DONE + DONE,
        size,
        strip=strip,
        before_done=lambda summary: f": {summary.usage and summary.usage.output_tokens}\n\n".encode(),
    )
    assert out == HELLO + BYE + (b"" if strip else ONLY) + b": 7\n\n" + DONE + DONE


def test_started() -> None:
    """The first content starts the reply; a role does not."""
    one = meter()
    read(one, event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}))
    assert not one.summary.started
    read(one, HELLO)
    assert one.summary.started


def test_usage_json_is_bounded() -> None:
    """A usage object that is too large is not kept raw."""
    body = event(chunk(finish="stop", usage={**USAGE, "x": "y" * 5000})) + DONE
    usage = run(body)[1].usage
    assert usage is not None
    assert usage.raw_json is None
    assert usage.input_tokens == 11


@pytest.mark.parametrize("cost", ["-1", "1e40", "1e-400000000", "NaN", '"3"', "true", "{}", '{"total_cost":[]}'])
def test_cost_that_is_none(cost: str) -> None:
    """A cost that can't be one is unknown."""
    usage = run(b'data: {"choices":[1],"usage":{"prompt_tokens":1,"cost":' + cost.encode() + b"}}\n\n")[1].usage
    assert usage is not None
    assert usage.cost_usd in (None, "0")
    assert (usage.cost_usd == "0") == (cost == "1e-400000000")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ({"type": "rate_limit_error", "code": "slow_down"}, "rate_limit_error: slow_down"),
        ({"type": "the prompt was: secret", "code": "sk-secret-1"}, "error"),
        ({"code": 429}, "429"),
        ({"code": 7, "type": None}, "error"),
        (["secret"], "error"),
    ],
)
def test_error_words(error: Any, words: str) -> None:
    """An error is reduced to its type and code, if those are plain words; its message is never kept."""
    assert run(event({"error": error}))[1].error == words
