"""Edge cases of the meter: line ends, size limits, unusual numbers, chunk boundaries."""

import gzip
import json
import time
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from arbstr_asgi.protocols.meter import Meter
from arbstr_asgi.protocols.meters import open_meter
from arbstr_asgi.protocols.reply import ReplySummary
from tests.support.sample_replies import read

MIB = 1024 * 1024
DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
COUNTS = {"input_tokens": 11, "output_tokens": 7, "total_tokens": 18}
SSE = "text/event-stream; charset=utf-8"


def dumps(value: object) -> str:
    """JSON without blanks, as most providers write it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def event(value: object, end: str = "\n") -> bytes:
    """One event with this JSON."""
    return f"data: {dumps(value)}{end}{end}".encode()


def chunk(content: str | None = "Hi", *, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """A chat.completion.chunk."""
    delta = {} if content is None else {"content": content}
    return {"id": "c-1", "model": "m-1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


def usage_only(usage: object = USAGE, **more: Any) -> dict[str, Any]:
    """The extra chunk that include_usage asks for."""
    return {"id": "c-1", "model": "m-1", "choices": [], "usage": usage, **more}


def stream(*values: object, done: bytes = DONE) -> bytes:
    """Events in a row."""
    return b"".join(event(value) for value in values) + done


STOP = chunk(None, finish="stop")


def opened(
    *,
    strip: bool = False,
    content_type: str | None = SSE,
    encoding: str | None = None,
    before_done: Callable[[ReplySummary], bytes] | None = None,
) -> Meter:
    """A meter for a streaming reply, unless told otherwise."""
    return open_meter(
        content_type=content_type,
        content_encoding=encoding,
        strip=strip,
        before_done=before_done,
    )


def feed(meter: Meter, chunks: Iterable[bytes]) -> bytes:
    """What the client gets of these chunks and the end."""
    return b"".join([*(read(meter, part) for part in chunks), meter.finish()])


def single_bytes(data: bytes) -> list[bytes]:
    """Every byte a chunk of its own."""
    return [data[at : at + 1] for at in range(len(data))]


def facts(summary: ReplySummary) -> dict[str, Any]:
    """A summary as one flat dict."""
    usage = summary.usage
    names = ("input_tokens", "output_tokens", "total_tokens", "cached_tokens", "cache_write_tokens")
    counts = {name: getattr(usage, name, None) for name in (*names, "reasoning_tokens", "cost_usd")}
    own = ("finish_reason", "model", "id", "service_tier", "error", "seen_done", "started", "events")
    return {
        **counts,
        **{name: getattr(summary, name) for name in own},
        "additive": usage is not None and usage.reasoning_is_additive,
        "final": summary.usage_is_final,
        "has_error": summary.error is not None,
    }


@pytest.mark.parametrize("cut", range(len(event(usage_only(), "\r\n")) + 1))
def test_line_feed_of_a_removed_event(cut: int) -> None:
    """A CRLF that a cut divides goes with the event that it ends."""
    sent = event(chunk(), "\r\n") + event(usage_only(), "\r\n") + event(STOP, "\r\n")
    at = len(event(chunk(), "\r\n")) + cut
    assert feed(opened(strip=True), [sent[:at], sent[at:]]) == event(chunk(), "\r\n") + event(STOP, "\r\n")


def test_quick_events_leave_no_trace() -> None:
    """A pending LF or comment is resolved before an event that arrives whole, not after it."""
    plain = event(chunk())
    parts = [plain, b": c\n", plain, event(usage_only()), plain]
    assert feed(opened(strip=True), parts) == plain + b": c\n" + plain + plain
    parts = [plain, event(usage_only(), "\r"), plain, b"\n", plain]
    assert feed(opened(strip=True), parts) == plain + plain + b"\n" + plain


def test_keep_alives_pass_at_once() -> None:
    """Blank lines and comment lines in front of an event are never buffered."""
    meter = opened(strip=True)
    for part in (b"\n", b"\r\n\r\n", b": ping\n", b":\n\n", b": ping\r\n"):
        assert read(meter, part) == part
    assert read(meter, b"data: {") == b""


@pytest.mark.parametrize("quick", [True, False], ids=["quick", "full"])
@pytest.mark.parametrize("tail", ["", ',"usage":null', ',"usage":null,"obfuscation":"a"', ', "usage": null'])
@pytest.mark.parametrize("content", ["a", "usage", '\\"usage\\":null', "\\u0075", "\\u00e9", '\\",\\"usage\\":null}'])
def test_null_usage(content: str, tail: str, quick: bool) -> None:
    """The null member is removed and its look-alikes are kept, on the fast path and by full parsing."""
    head = (
        f'{{"id":"c-1","model":"m-1","choices":[{{"index":0,"delta":{{"content":"{content}"}},"finish_reason":null}}]'
    )
    sent = f"data: {head}{tail}}}\n\n".encode()
    tail = tail.replace(',"usage":null', "").replace(', "usage": null', "")
    meter = opened(strip=True)
    if quick:
        read(meter, event(chunk()))
    assert read(meter, sent) == f"data: {head}{tail}}}\n\n".encode()


@pytest.mark.parametrize(
    ("payload", "stripped"),
    [
        ('{"usage":null}', "{}"),
        ('{"usage":null,"a":1}', '{"a":1}'),
        ('{ "usage" : null , "a":1}', '{ "a":1}'),
        ('{"a":1 ,\t"usage" : null }', '{"a":1  }'),
        ('{"a":1,"usage":null,"b":2}', '{"a":1,"b":2}'),
        ('{"usage":null,"a":1,"usage":null}', '{"a":1}'),
        ('{"usage":null,"usage":null}', "{}"),
        ('{"a":1,"\\u0075sage":null}', '{"a":1}'),
        ('{"a":{"usage":null}}', '{"a":{"usage":null}}'),
        ('{"a":{"b":1,"usage":null},"\\u0075sage":null}', '{"a":{"b":1,"usage":null}}'),
        ('{"usage":{},"error":{"code":1}}', '{"usage":{},"error":{"code":1}}'),
        ('{"a":"é","us\\u0061ge":null,"b":"ü"}', '{"a":"é","b":"ü"}'),
        ('{"usage":null', '{"usage":null'),
        ('[{"usage":null}]', '[{"usage":null}]'),
    ],
)
def test_null_usage_anywhere(payload: str, stripped: str) -> None:
    """A top-level null usage is removed with its comma at any position; nothing else is."""
    sent, got = (f"data: {text}\n\n".encode() for text in (payload, stripped))
    assert feed(opened(strip=True), [sent]) == got


@pytest.mark.parametrize(
    ("count", "read"),
    [
        ("0", 0),
        ("11.0", 11),
        ("1e2", 100),
        (str(2**63 - 1), 2**63 - 1),
        (str(2**63), None),
        ("1e400", None),
        ("1e999999", None),
        ("9" * 5000, None),
        ("-1", None),
        ("1.5", None),
        ("true", None),
        ('"7"', None),
        ("null", None),
        ("NaN", None),
        ("Infinity", None),
        ("[1]", None),
    ],
)
def test_counts(count: str, read: int | None) -> None:
    """A count is an integer from 0 to 2**63 - 1; any other value is ignored, and the other counts are kept."""
    body = f'{{"choices":[],"usage":{{"prompt_tokens":{count},"completion_tokens":7}}}}'
    meter = opened()
    feed(meter, [f"data: {body}\n\n".encode()])
    assert meter.summary.usage is not None
    assert (meter.summary.usage.input_tokens, meter.summary.usage.output_tokens) == (read, 7)


@pytest.mark.parametrize("usage", ['{"prompt_tokens":true}', '{"prompt_tokens":-5}', '{"cost":1}', "[]", "0", '"x"'])
def test_no_usage(usage: str) -> None:
    """An object without one valid count is no usage."""
    meter = opened()
    feed(meter, [b'data: {"choices":[],"usage":' + usage.encode() + b"}\n\n"])
    assert meter.summary.usage is None


@pytest.mark.parametrize(
    ("members", "cost"),
    [
        ('"cost":0.00019875', "0.00019875"),
        ('"cost":1e-05', "0.00001"),
        ('"cost":0', "0"),
        ('"cost":2', "2"),
        ('"cost":0.1000', "0.1"),
        ('"cost":{"total_cost":0.00507}', "0.00507"),
        ('"cost_in_usd_ticks":2488500', "0.00024885"),
        ('"cost_in_usd_ticks":0', "0"),
        ('"cost":null', None),
        ('"cost":-1', None),
        ('"cost":"0.1"', None),
        ('"cost":true', None),
        ('"cost":1e999999', None),
        ('"cost":NaN', None),
    ],
)
def test_provider_cost(members: str, cost: str | None) -> None:
    """The provider's own cost is kept as an exact decimal, or not at all."""
    meter = opened()
    feed(meter, [f'data: {{"choices":[],"usage":{{"prompt_tokens":1,{members}}}}}\n\n'.encode()])
    assert meter.summary.usage is not None
    assert meter.summary.usage.cost_usd == cost


def test_raw_usage() -> None:
    """The usage object is kept as received, up to 4 KiB."""
    meter = opened()
    raw = '{"prompt_tokens": 11.0,"x":{"y" : 1e-05} }'
    read(meter, f'data: {{"choices":[],"usage":{raw}}}\n\n'.encode())
    assert meter.summary.usage is not None
    assert meter.summary.usage.raw_json == raw
    read(meter, event(usage_only({"prompt_tokens": 12, "x": "y" * 4096})))
    assert meter.summary.usage.input_tokens == 12
    assert meter.summary.usage.raw_json is None


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ({"type": "server_error", "code": "overloaded"}, "server_error: overloaded"),
        ({"type": "server_error", "code": None, "message": "for alice"}, "server_error"),
        ({"type": "server_error", "code": 502}, "server_error: 502"),
        ({"type": "sk-123", "code": "for alice@x"}, "error"),
        ({"type": "a" * 49, "code": 10**9}, "error"),
        ({"type": "server_error\n", "code": True}, "error"),
        ("for alice", "error"),
        (["for alice"], "error"),
    ],
)
def test_error_words(error: object, words: str) -> None:
    """An error is reduced to its type and code if they are plain words, never the provider's message."""
    meter = opened()
    feed(meter, [event({"error": error})])
    assert meter.summary.error == words


def test_cumulative_usage_of_a_cut_stream() -> None:
    """Usage on a chunk in the middle is not final until the choice has finished."""
    meter = opened(strip=True)
    read(meter, event(chunk(usage={**USAGE, "completion_tokens": 3})))
    assert meter.summary.usage is not None
    assert not meter.summary.usage_is_final
    assert meter.abandon()
    assert not meter.summary.usage_is_final
    read(meter, event({**STOP, "usage": USAGE}))
    assert meter.summary.usage_is_final


def test_cumulative_usage_of_a_whole_stream() -> None:
    """Usage on the last chunk is final after [DONE], even if the connection then breaks off."""
    meter = opened()
    read(meter, event(chunk(usage=USAGE)) + DONE)
    assert meter.summary.usage_is_final


def test_cumulative_usage_without_an_end() -> None:
    """After a body that ends without finish_reason and [DONE], cumulative usage stays an interim value."""
    meter = opened()
    feed(meter, [event(chunk(usage=USAGE))])
    assert not meter.summary.usage_is_final


@pytest.mark.parametrize(
    ("delta", "started"),
    [
        ({"role": "assistant", "content": ""}, False),
        ({"role": "assistant", "content": None, "refusal": None, "tool_calls": []}, False),
        ({"content": "a"}, True),
        ({"reasoning_content": "a"}, True),
        ({"tool_calls": [{"index": 0}]}, True),
    ],
)
def test_started(delta: dict[str, Any], started: bool) -> None:
    """The first content of any kind starts a reply; a role doesn't."""
    meter = opened()
    read(meter, event({"choices": [{"index": 0, "delta": delta}]}))
    assert meter.summary.started is started


def test_event_size_limit() -> None:
    """An event of more than 1 MiB passes unchanged, in pieces or whole; the next is metered again."""
    big = event(chunk("x" * MIB, usage=None))
    sent = big + event(chunk(usage=None)) + event(usage_only()) + DONE
    for size in (len(sent), 65536, MIB + 1):
        parts = [sent[at : at + size] for at in range(0, len(sent), size)]
        meter = opened(strip=True)
        assert feed(meter, parts) == big + event(chunk()) + DONE
        assert meter.summary.usage is not None
    meter = opened(strip=True)
    assert read(meter, big[: MIB // 2]) == b""
    assert len(read(meter, big[MIB // 2 : MIB + 5])) == MIB + 5
    assert read(meter, b"x") == b"x"


def test_event_below_the_size_limit() -> None:
    """An event just below 1 MiB is metered like any other, however it is cut."""
    bare = len(event(chunk("", usage=None)))
    sent = event(chunk("x" * (MIB - bare), usage=None))
    assert len(sent) == MIB
    got = event(chunk("x" * (MIB - bare)))
    for cut in (0, 100, MIB // 2, MIB - 2, MIB - 1):
        assert feed(opened(strip=True), [sent[:cut], sent[cut:]]) == got


@pytest.mark.parametrize(
    ("sent", "strip", "between"),
    [
        (b"", True, True),
        (b"", False, True),
        (event(chunk()), True, True),
        (event(chunk()), False, True),
        (event(chunk(), "\r\n"), False, True),
        (event(chunk()) + b"data: {", True, True),
        (event(chunk()) + b"data: {", False, False),
        (event(chunk())[:-1], False, False),
        (event(chunk()) + b": pi", True, True),
        (event(chunk()) + b": pi", False, False),
        (event(chunk()) + b": ping\n", False, True),
        (event(chunk()) + b": ping\ndata: {", True, True),
        (event(chunk("x" * MIB))[:-9], True, False),
        (event(chunk("x" * MIB))[:-9], False, False),
        (event(chunk("x" * MIB)), True, True),
        (event(chunk("x" * MIB)) + b"data: {", True, True),
    ],
)
def test_abandon(sent: bytes, strip: bool, between: bool) -> None:
    """`abandon` tells whether the client is between events; buffered bytes are dropped."""
    meter = opened(strip=strip)
    read(meter, sent)
    assert meter.abandon() is between


def test_abandoned_json() -> None:
    """No event may follow a part of a JSON body."""
    meter = opened(content_type="application/json")
    read(meter, b'{"a":')
    assert meter.abandon() is False


@pytest.mark.parametrize("strip", [True, False])
def test_before_done(strip: bool) -> None:
    """The bytes of `before_done` are inserted once before the first [DONE], with the usage known."""
    seen: list[ReplySummary] = []

    def insert(summary: ReplySummary) -> bytes:
        seen.append(summary)
        assert summary.usage is not None
        return b": cost 1\n\n"

    sent = stream(chunk(), STOP, usage_only()) + DONE
    head = stream(chunk(), STOP, done=b"") if strip else stream(chunk(), STOP, usage_only(), done=b"")
    for parts in ([sent], single_bytes(sent), [sent[:-3], sent[-3:]]):
        meter = opened(strip=strip, before_done=insert)
        assert feed(meter, parts) == head + b": cost 1\n\n" + DONE + DONE
        assert seen.pop() is meter.summary
        assert not seen


def test_before_done_at_the_end_of_the_body() -> None:
    """A [DONE] without its blank line counts."""
    meter = opened(before_done=lambda summary: b": x\n\n")
    assert feed(meter, [event(STOP) + b"data: [DONE]"]) == event(STOP) + b": x\n\ndata: [DONE]"


def failing(*_: object, **__: object) -> Any:
    """Stands in for a bug of ours."""
    raise RuntimeError("a bug")


def break_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every function that parses an event raise."""
    from arbstr_asgi.protocols import stream_fast_path, stream_meter

    class Broken:
        decode = failing

    monkeypatch.setattr(stream_meter, "decode", failing)
    monkeypatch.setattr(stream_meter, "parse_block", failing)
    monkeypatch.setattr(stream_fast_path, "_decoder", Broken)


@pytest.mark.parametrize("strip", [True, False])
@pytest.mark.parametrize("size", [1, 7, 40, len(event(chunk(usage=None))), 10_000])
@pytest.mark.parametrize("started", [True, False])
def test_failure_inside(monkeypatch: pytest.MonkeyPatch, started: bool, size: int, strip: bool) -> None:
    """When the meter fails, the client gets every byte from then on, and the summary is kept."""
    meter = opened(strip=strip)
    if started:
        read(meter, event(chunk()))
    before = facts(meter.summary)
    break_reading(monkeypatch)
    sent = event(chunk(usage=None)) + event(usage_only()) + DONE
    assert feed(meter, [sent[at : at + size] for at in range(0, len(sent), size)]) == sent
    assert facts(meter.summary) == before


def test_failure_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the meter fails on the last event, the client still gets it."""
    meter = opened(strip=True)
    assert read(meter, event(usage_only())[:-2]) == b""
    break_reading(monkeypatch)
    assert meter.finish() == event(usage_only())[:-2]


def test_failure_in_before_done() -> None:
    """When `before_done` fails, [DONE] is sent without its bytes."""
    assert feed(opened(strip=True, before_done=failing), [stream(STOP)]) == stream(STOP)


BODY: dict[str, Any] = {
    "id": "c-1",
    "object": "chat.completion",
    "model": "m-1",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
    "usage": USAGE,
}


@pytest.mark.parametrize("content_type", ["application/json", SSE, None])
@pytest.mark.parametrize("strip", [True, False])
@pytest.mark.parametrize("before", [b"", b"\n\n  \n", b"\xef\xbb\xbf"])
def test_json(before: bytes, strip: bool, content_type: str | None) -> None:
    """A JSON response passes unchanged and is parsed at its end, also behind blanks, with any content type."""
    sent = before + json.dumps({**BODY, "service_tier": None}, indent=1).encode()
    for parts in ([sent], single_bytes(sent)):
        meter = opened(strip=strip, content_type=content_type)
        assert feed(meter, parts) == sent
        found = facts(meter.summary)
        assert {key: found[key] for key in COUNTS} == COUNTS
        assert (found["finish_reason"], found["started"], found["final"], found["events"]) == ("stop", True, True, 0)


def test_json_chunks_are_the_same_objects() -> None:
    """`feed` returns the same chunk objects for a JSON response."""
    meter = opened(content_type="application/json")
    part = b'{"a":1}'
    assert read(meter, part) is part


@pytest.mark.parametrize(
    "body", [b"", b'{"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":1', b"<html>", b"3"]
)
def test_json_that_is_none(body: bytes) -> None:
    """An empty, partial or unknown body has no usage."""
    meter = opened(content_type="application/json")
    assert feed(meter, [body]) == body
    assert (meter.summary.usage, meter.summary.finish_reason, meter.summary.started) == (None, None, False)


def test_json_error() -> None:
    """An error body is reduced to type and code."""
    meter = opened(content_type="application/json")
    feed(meter, [dumps({"error": {"message": "for bob", "type": "invalid_request_error", "code": None}}).encode()])
    assert meter.summary.error == "invalid_request_error"


@pytest.mark.parametrize("content_type", ["application/json", None, "text/plain"])
@pytest.mark.parametrize("before", [b"", b"\n", b"\r\n\n", b"\xef\xbb\xbf", b": hi\n\n", b"event: message\n"])
def test_stream_under_another_label(before: bytes, content_type: str | None) -> None:
    """A stream is detected by its first bytes, at any chunk boundaries."""
    sent = before + stream(chunk(usage=None), STOP, usage_only())
    got = before + stream(chunk(), STOP)
    for parts in ([sent], single_bytes(sent), [sent[:3], sent[3:]]):
        meter = opened(strip=True, content_type=content_type)
        assert feed(meter, parts) == got
        assert meter.summary.seen_done
        plain = opened(content_type=content_type)
        assert feed(plain, parts) == sent
        assert facts(plain.summary) == facts(meter.summary)


@pytest.mark.parametrize("sent", [b"d", b"dat", b"event", b"\xef", b"\xef\xbb", b"\n\nda", b"\xefx", b"dada: x\n\n"])
def test_undecided(sent: bytes) -> None:
    """Bytes buffered to detect a stream are not lost if it is none."""
    for parts in ([sent], single_bytes(sent)):
        assert feed(opened(strip=True, content_type="application/json"), parts) == sent


def deflated(data: bytes, bits: int) -> bytes:
    """Compressed with this kind of frame."""
    squeeze = zlib.compressobj(wbits=bits)
    return squeeze.compress(data) + squeeze.flush()


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("gzip", gzip.compress),
        (" GZIP ", gzip.compress),
        ("deflate", lambda data: deflated(data, 15)),
        ("deflate", lambda data: deflated(data, -15)),
    ],
    ids=["gzip", "odd spelling", "zlib", "bare deflate"],
)
def test_encoded(encoding: str, packed: Callable[[bytes], bytes]) -> None:
    """An encoded response passes unchanged and is metered, at any chunk boundaries."""
    sent = packed(stream(chunk(usage=None), STOP, usage_only()))
    for parts in ([sent], single_bytes(sent)):
        meter = opened(strip=True, encoding=encoding, before_done=lambda summary: b": x\n\n")
        assert feed(meter, parts) == sent
        found = facts(meter.summary)
        assert {key: found[key] for key in COUNTS} == COUNTS
        assert found["seen_done"]
    sent = packed(dumps(BODY).encode())
    meter = opened(encoding=encoding, content_type="application/json")
    assert feed(meter, [sent]) == sent
    assert meter.summary.finish_reason == "stop"


@pytest.mark.parametrize(("encoding", "sent"), [("br", b"\x0b\x02\x80"), ("zstd", b"x"), ("gzip", b"not gzip" * 9)])
def test_unknown_encoding(encoding: str, sent: bytes) -> None:
    """A body that can not be decoded passes, and has no usage."""
    meter = opened(strip=True, encoding=encoding)
    assert read(meter, sent) is sent
    assert read(meter, sent) is sent
    assert meter.finish() == b""
    assert (meter.summary.usage, meter.summary.events) == (None, 0)


def test_bomb() -> None:
    """A small body that decodes to a huge one costs a bounded amount of memory."""
    import tracemalloc

    sent = gzip.compress(b" " * (200 * MIB), compresslevel=1)
    meter = opened(encoding="gzip", content_type="application/json")
    tracemalloc.start()
    try:
        assert feed(meter, [sent]) == sent
        assert tracemalloc.get_traced_memory()[1] < 100 * MIB
    finally:
        tracemalloc.stop()


def test_long_comment_in_small_pieces() -> None:
    """An incomplete comment line is not searched again from its start with each chunk."""
    meter = opened(strip=True)
    sent = b":" + b"x" * 65_536 + b"\n\n"
    start = time.process_time()
    assert feed(meter, single_bytes(sent)) == sent
    assert time.process_time() - start < 5  # 0.2 s; 35 s if it were


def test_cumulative_usage_is_not_searched_for_nulls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk whose one usage is an object is not searched for null members."""
    from arbstr_asgi.protocols import json_edit

    monkeypatch.setattr(json_edit, "find_members", failing)
    sent = event(chunk(usage=USAGE))
    assert feed(opened(strip=True), [sent, sent]) == sent + sent


def test_null_index() -> None:
    """A choice without an index has its position as index."""
    meter = opened()
    read(meter, event({"choices": [{"index": None, "delta": {}, "finish_reason": "stop"}]}))
    assert meter.summary.finish_reason == "stop"


def test_usage_of_groq_keeps_its_numbers() -> None:
    """The raw usage of a nested object keeps numbers as numbers."""
    meter = opened()
    read(meter, event({**STOP, "x_groq": {"usage": {**USAGE, "queue_time": 0.02}}}))
    assert meter.summary.usage is not None
    assert json.loads(meter.summary.usage.raw_json or "")["queue_time"] == 0.02


@pytest.mark.parametrize("size", [MIB // 3, 4 * MIB])
def test_large_event_starts_the_reply(size: int) -> None:
    """An event that is too large to be decoded, such as an image, is content."""
    meter = opened()
    sent = event(chunk("x" * MIB))
    for at in range(0, len(sent), size):
        read(meter, sent[at : at + size])
    assert meter.summary.started


def test_old_error_of_vllm() -> None:
    """An object that is an error itself is reduced to its own type and code."""
    meter = opened()
    read(meter, event({"object": "error", "message": "for bob", "type": "BadRequestError", "code": 400}))
    assert meter.summary.error == "BadRequestError: 400"


def test_error_event_that_is_no_json() -> None:
    """An event named error is an error whatever it says."""
    meter = opened()
    read(meter, b"event: error\ndata: upstream fell over\n\n")
    assert meter.summary.error == "error"


@pytest.mark.parametrize(
    ("encoding", "body"), [("compress", b"x"), ("zstd", b"x"), (None, b'{"usage":{"' + b"x" * MIB)]
)
def test_whole_but_unreadable(encoding: str | None, body: bytes) -> None:
    """A body that ended regularly and can not be decoded counts as finished."""
    meter = opened(content_type="application/json", encoding=encoding)
    feed(meter, [body])
    assert meter.summary.finished
