"""The meter: what it reads in each provider's stream, what it removes, and what it never does."""

import gzip
import json
import zlib
from typing import Any

import pytest

from arbstr_asgi.protocols import body_meter as plain
from arbstr_asgi.protocols import meters as decoding
from arbstr_asgi.protocols import stream_fast_path as lean
from arbstr_asgi.protocols import stream_meter as events
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


def said(reading: ReplySummary) -> dict[str, Any]:
    """A reading without what is not known."""
    facts: dict[str, Any] = {
        "finish_reason": reading.finish_reason,
        "error": reading.error,
        "final": reading.usage_is_final if reading.usage else None,
        "complete": reading.finished,
    }
    if reading.usage is not None:
        facts |= {name: getattr(reading.usage, name) for name in reading.usage.__struct_fields__ if name != "raw_json"}
        facts["additive"] = facts.pop("reasoning_is_additive") or None
        for name in ("unlisted_input_tokens", "unlisted_output_tokens", "is_contradictory"):
            facts[name] = facts[name] or None
    return {name: value for name, value in facts.items() if value is not None}


@pytest.mark.parametrize("size", [None, 1, 7], ids=["whole", "by byte", "by seven"])
@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.name)
def test_stream(stream: Stream, size: int | None) -> None:
    """Each provider's stream is read rightly, and loses exactly what we caused."""
    out, reading = run(stream.sent, size)
    assert out == stream.got
    expected = {name: value for name, value in stream.said.items() if value is not None and name != "done"}
    if reading.usage is None:
        expected.pop("final", None)
    assert said(reading) == expected
    assert reading.seen_done == (stream.said.get("done", b"[DONE]" in stream.sent))


@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.name)
def test_untouched(stream: Stream) -> None:
    """Where the client asked for usage itself, every byte passes."""
    assert run(stream.sent, 5, strip=False)[0] == stream.sent


def test_lean_and_full_path_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """The short way for events with nothing special in them gives what the long way gives."""
    body = (
        HELLO + event(chunk("hi", usage=None)) * 3 + event(chunk("x", usage=None, obfuscation="a")) + BYE + ONLY + DONE
    )
    short = run(body, 301)
    monkeypatch.setattr(FastPath, "event", lambda self, block: None)
    full = run(body, 301)
    assert short[0] == full[0]
    assert all(getattr(short[1], name) == getattr(full[1], name) for name in ReplySummary.__slots__)


def test_events_pass_as_they_complete() -> None:
    """A complete event is out before the next byte comes; only an incomplete one is held."""
    one = meter()
    assert read(one, HELLO[:-1]) == b""
    assert read(one, b"\n") == HELLO
    assert read(one, b": ping\n") == b": ping\n"
    assert read(one, b"\n\n") == b"\n\n"
    assert read(one, HELLO + BYE[:5]) == HELLO


def test_large_event_passes() -> None:
    """An event beyond the limit flows through untouched, and the next one is metered again."""
    large = event(chunk("x" * 2 * events.MAX_EVENT_BYTES, usage=None))
    for size in (None, 65_536, 300_001):
        out, reading = run(HELLO + large + event(chunk("y", usage=None)) + BYE + ONLY + DONE, size)
        assert out == HELLO + large + event(chunk("y")) + BYE + DONE
        assert reading.usage is not None
    one = meter()
    passed = sum(len(read(one, large[at : at + 65_536])) for at in range(0, len(large) - 65_536, 65_536))
    assert passed >= len(large) - 2 * 65_536
    assert not one.abandon()


def test_abandon() -> None:
    """A broken stream leaves the client between events where the broken one was held, inside it where it was not."""
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
    """A meter that breaks lets every byte pass, held ones included, and says nothing of what it read."""

    def broken(*args: Any, **more: Any) -> Any:
        raise RuntimeError("secret")

    body = HELLO + event(chunk("hi", usage=None)) + BYE + ONLY + DONE
    monkeypatch.setattr(events, where, broken)
    monkeypatch.setattr(lean, where, broken, raising=False)
    assert run(body, size)[0] == body
    assert "secret" not in caplog.text
    assert "metering failed with RuntimeError" in caplog.text
    one = meter()
    read(one, HELLO)
    read(one, event(chunk("hi", usage=None)))
    assert not one.abandon()


def test_failure_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure on the last event or on a JSON body costs the reading only."""

    def broken(*args: Any) -> Any:
        raise RuntimeError

    monkeypatch.setattr(events.EventMeter, "_event", broken)
    assert run(b"data: [DONE]")[0] == b"data: [DONE]"
    monkeypatch.setattr(plain, "decode", broken)
    out, reading = run(b"{}", content_type="application/json")
    assert (out, reading.finished) == (b"{}", False)


def test_plain_body() -> None:
    """A JSON reply passes as it comes and is read at its end; blank lines in front don't matter."""
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
    out, reading = run(body, 3, "application/json")
    assert out == body
    assert reading.usage is not None
    assert json.loads(reading.usage.raw_json or "") == USAGE
    assert (reading.model, reading.id, reading.service_tier, reading.finished) == ("m-1", "chatcmpl-1", "flex", True)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"usage":{"prompt_tokens":11', b"<html>", b'"x"'])
def test_not_a_completion(body: bytes) -> None:
    """What isn't a JSON object says nothing, and is not complete."""
    out, reading = run(body, 2, "application/json")
    assert out == body
    assert reading.usage is None
    assert not reading.finished


@pytest.mark.parametrize("size", [None, 1, 3])
@pytest.mark.parametrize("start", [b"", b"\n\n", b"\xef\xbb\xbf", b": hi\n\n", b"event: x\n\n"])
def test_stream_under_another_name(start: bytes, size: int | None) -> None:
    """A stream that is called JSON is metered by its bytes."""
    body = start + HELLO + BYE + ONLY + DONE
    out, reading = run(body, size, "application/json")
    assert out == start + HELLO + BYE + DONE
    assert reading.usage is not None
    assert run(body, size, "application/json", strip=False)[0] == body


@pytest.mark.parametrize("body", [b"{}", b'\n{"error":"x"}', b"d", b"da", b"\xef\xbb", b"", b"\n", b"dark"])
@pytest.mark.parametrize("strip", [True, False])
def test_no_stream_after_all(body: bytes, strip: bool) -> None:
    """A reply that is no stream passes whole, however little of it there is."""
    for size in (None, 1):
        assert run(body, size, "application/json", strip=strip)[0] == body


def test_sniffing_abandoned() -> None:
    """Bytes that were too few to tell are dropped with the broken reply."""
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
    """A compressed reply passes untouched and is read all the same."""
    body = HELLO + BYE + ONLY + DONE if content_type == SSE else json.dumps({"usage": USAGE}).encode()
    packed = zlib.compress(body) if encoding == "deflate" else gzip.compress(body)
    out, reading = run(packed, 7, content_type, content_encoding=encoding)
    assert out == packed
    assert reading.usage is not None
    one = meter(content_type, content_encoding=encoding)
    read(one, packed)
    assert not one.abandon()


@pytest.mark.parametrize(
    ("body", "encoding"), [(b"not gzip", "gzip"), (b"\x00\x01", "br"), (gzip.compress(b"x" * 10**6), "gzip")]
)
def test_encoding_that_cannot_be_read(body: bytes, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown, wrong or exploding encoding passes untouched, and nothing is known."""
    monkeypatch.setattr(decoding, "MAX_DECODED", 1000)
    out, reading = run(body, 3, content_encoding=encoding)
    assert out == body
    assert reading.usage is None


@pytest.mark.parametrize("strip", [True, False])
@pytest.mark.parametrize("size", [None, 1, 50])
def test_before_done(strip: bool, size: int | None) -> None:
    """What is to be put before [DONE] comes exactly there, once, and knows the usage."""
    out, _ = run(
        HELLO + BYE + ONLY + DONE + DONE,
        size,
        strip=strip,
        before_done=lambda reading: f": {reading.usage and reading.usage.output_tokens}\n\n".encode(),
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
    """An error is told in its type and code, if those are plain words; its text is never kept."""
    assert run(event({"error": error}))[1].error == words
