"""What is learned of providers that refuse `stream_options`, for whom, and for how long."""

import asyncio
import gzip
import json
import logging
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from arbstr_asgi import Caller
from arbstr_asgi.gateway.attempt import MAX_ERROR_BYTES
from arbstr_asgi.providers.stream_options import MAX_PAIRS, MAX_SHOWN, StreamOptionsSupport
from tests.support.asgi_client import (
    EVENTS,
    JSON_TYPE,
    SSE_TYPE,
    STREAM_REQUEST,
    STRIPPED,
    Call,
    Chunks,
    Provided,
    call,
    configured,
    rows,
    running,
)

HOUR = 3600.0
PAIR = ("p", "m")
REFUSAL = b'{"error":{"message":"Unrecognized request argument: stream_options"}}'
OTHER = b'{"error":{"message":"no such model"}}'


def test_a_refusal_applies_to_one_end_user() -> None:
    """Only the end user who met the refusal is not injected for; without a name is a user as well."""
    for teacher, others in (("alice", ["bob", None]), (None, ["alice"])):
        support = StreamOptionsSupport()
        assert support.should_inject(*PAIR, teacher, 0)
        assert support.mark_refused(*PAIR, teacher, 0)
        assert not support.should_inject(*PAIR, teacher, 1)
        assert all(support.should_inject(*PAIR, other, 1) for other in others)
        assert support.should_inject("p", "other", teacher, 1)
        assert support.should_inject("other", "m", teacher, 1)


def test_news_once() -> None:
    """Of all who learn the same of a pair, the first within the hour has news."""
    support = StreamOptionsSupport()
    assert [support.mark_refused(*PAIR, user, now) for user, now in (("a", 0), ("a", 60), ("b", 61))] == [
        True,
        False,
        False,
    ]
    assert support.mark_refused(*PAIR, "a", 61 + HOUR)


def test_forgotten() -> None:
    """After an hour a lesson is over, and so is what the snapshot shows."""
    support = StreamOptionsSupport()
    support.mark_refused(*PAIR, "a", 0)
    support.should_inject(*PAIR, "a", HOUR - 1)  # the probe
    assert not support.should_inject(*PAIR, "a", HOUR - 0.5)
    assert support.unsupported(HOUR - 1) == [{"provider": "p", "model": "m"}]
    assert support.should_inject(*PAIR, "a", HOUR)
    assert support.unsupported(HOUR) == []


def test_probe() -> None:
    """One request a minute is injected all the same."""
    support = StreamOptionsSupport()
    support.mark_refused(*PAIR, "a", 0)
    assert [now for now in range(0, 200, 10) if support.should_inject(*PAIR, "a", now)] == [60, 120, 180]


def test_accepted_forgets_for_everybody() -> None:
    """A 2xx of an injected request ends all lessons of its pair; what is learned later revives none of them."""
    support = StreamOptionsSupport()
    support.mark_refused(*PAIR, "a", 0)
    support.mark_refused(*PAIR, "b", 0)
    support.mark_supported(*PAIR, 1)
    assert support.should_inject(*PAIR, "a", 2)
    assert support.unsupported(2) == []
    assert support.mark_refused(*PAIR, "b", 1 + HOUR)
    assert support.should_inject(*PAIR, "a", 2 + HOUR)


def test_a_supported_pair_is_not_marked() -> None:
    """A pair that has accepted within the hour teaches nothing."""
    support = StreamOptionsSupport()
    support.mark_supported(*PAIR, 0)
    assert not support.mark_refused(*PAIR, "a", HOUR - 1)
    assert support.should_inject(*PAIR, "a", HOUR - 1)
    assert support.mark_refused(*PAIR, "a", HOUR)


def test_bounded() -> None:
    """Of more pairs than fit the oldest are forgotten, and only the newest are shown."""
    support = StreamOptionsSupport()
    for number in range(MAX_PAIRS + 1):
        support.mark_refused("p", str(number), "a", number / 1000)
    assert support.should_inject("p", "0", "a", 2)
    assert not support.should_inject("p", "1", "a", 2)
    shown = support.unsupported(2)
    assert (len(shown), shown[0]["model"]) == (MAX_SHOWN, str(MAX_PAIRS))


def refusing(status: int = 400, body: bytes = REFUSAL, then: int = 200) -> Callable[[httpx.Request], httpx.Response]:
    """A provider that refuses `stream_options` with this, and answers others with `then`."""

    def answer(request: httpx.Request) -> httpx.Response:
        if b"stream_options" in request.content:
            steps = [body[at : at + 20000] for at in range(0, len(body), 20000)]
            return httpx.Response(status, headers=JSON_TYPE, stream=Chunks(*steps))
        if then != 200:
            return httpx.Response(then, headers=JSON_TYPE, stream=Chunks(OTHER))
        return httpx.Response(200, headers=SSE_TYPE, stream=Chunks(STRIPPED))

    return answer


def make_calls(
    folder: Path, answer: Callable[[httpx.Request], httpx.Response], *bodies: bytes, **facts: Any
) -> tuple[list[Call], list[dict[str, Any]], list[httpx.Request], list[dict[str, str]]]:
    """Calls one after the other, by alice unless the body says bob; replies, rows, requests, and the snapshot."""
    users = iter("bob" if b"bob" in body else "alice" for body in bodies)

    async def main() -> Any:
        provided = Provided(answer)
        config = configured(folder, facts.pop("provider", None), **facts)
        async with running("middleware", config, provided, identify=lambda scope: Caller(next(users))) as app:
            replies = [await call(app, body) for body in bodies]
            return replies, await rows(app), provided.requests, app._gateway.uninjected()

    found: tuple[list[Call], list[dict[str, Any]], list[httpx.Request], list[dict[str, str]]] = asyncio.run(main())
    return found


@pytest.mark.parametrize("status", [400, 422])
def test_asked_again(status: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A refusal of what we added is asked again in the client's bytes, once; the user's next stream goes so at once."""
    bob = STREAM_REQUEST.replace(b"[]", b'["bob"]')
    with caplog.at_level(logging.WARNING, "arbstr_asgi"):
        replies, found, requests, shown = make_calls(tmp_path, refusing(status), STREAM_REQUEST, STREAM_REQUEST, bob)
    assert [(reply.status, reply.body) for reply in replies] == [(200, STRIPPED)] * 3
    assert [row["attempts"] for row in found] == [2, 1, 2]
    assert {(row["usage_source"], row["end_reason"]) for row in found} == {("none", "completed")}
    assert [b"stream_options" in request.content for request in requests] == [True, False, False, True, False]
    assert requests[1].content == requests[2].content == STREAM_REQUEST
    assert requests[0].headers["idempotency-key"] + "-2" == requests[1].headers["idempotency-key"]
    assert shown == [{"provider": "p", "model": "m"}]
    said = [record.getMessage() for record in caplog.records if "stream_options" in record.getMessage()]
    assert len(said) == 1
    assert "'m'" in said[0]
    assert "inject = false" in said[0]


WORDS = [
    (500, b'{"error":{"message":"json: unknown field \\"stream_options\\""}}'),
    (400, b'{"error":{"message":"Unrecognized key: include_usage","type":"invalid_request_error"}}'),
    (400, b'{"error":{"message":"json: unknown field"}}'),
    (422, b'{"detail":[{"type":"extra_forbidden","loc":["body"],"msg":"Extra inputs are not permitted"}]}'),
    (400, b'{"message":"Additional properties are not allowed"}'),
    (400, b'{"error":"Unrecognized key(s) in object"}'),
    (500, b"TypeError: create() got an unexpected keyword argument"),
    (400, b'{"error":{"code":"unknown_parameter"}}'),
    (404, b'{"error":"unsupported parameter"}'),
    (501, b"a field of the body isn't supported"),
    (400, b'{"error":{"message":"streamOptions: cannot find field"}}'),
    (200, b'{"error":{"message":"Unknown parameter: stream_options"}}'),
    (200, b'data: {"error":{"message":"Unknown parameter","param":"stream_options"}}\n\n'),
    (200, b'event: error\ndata: {"message":"unknown field include_usage"}\n\n'),
]


@pytest.mark.parametrize("encoding", ["identity", "gzip", "deflate"])
@pytest.mark.parametrize(("status", "body"), WORDS)
def test_other_words(status: int, body: bytes, encoding: str, tmp_path: Path) -> None:
    """Whatever status, shape and words a refusal has, the client's own bytes are sent, and its stream is whole."""
    packed = {"identity": body, "gzip": gzip.compress(body), "deflate": zlib.compress(body)}[encoding]
    headers = {**(SSE_TYPE if b"data:" in body else JSON_TYPE), "content-encoding": encoding}

    def answer(request: httpx.Request) -> httpx.Response:
        if b"stream_options" in request.content:
            return httpx.Response(
                status, headers=headers, stream=Chunks(*[packed[at : at + 9] for at in range(0, len(packed), 9)])
            )
        return httpx.Response(200, headers=SSE_TYPE, stream=Chunks(STRIPPED))

    replies, found, requests, shown = make_calls(tmp_path, answer, STREAM_REQUEST, STREAM_REQUEST)
    assert [(reply.status, reply.body) for reply in replies] == [(200, STRIPPED)] * 2
    assert [row["attempts"] for row in found] == [2, 1]
    assert [request.content == STREAM_REQUEST for request in requests] == [False, True, True]
    assert shown == [{"provider": "p", "model": "m"}]


def test_an_error_after_all_teaches_nothing(tmp_path: Path) -> None:
    """Where the client's own bytes get an error under 200 too, that is the answer, and nothing is learned."""
    event = b'data: {"error":{"message":"busy"}}\n\n'

    def answer(request: httpx.Request) -> httpx.Response:
        if b"stream_options" in request.content:
            return httpx.Response(400, headers=JSON_TYPE, stream=Chunks(REFUSAL))
        return httpx.Response(200, headers=SSE_TYPE, stream=Chunks(event))

    [reply], _, requests, shown = make_calls(tmp_path, answer, STREAM_REQUEST)
    assert (reply.body, len(requests), shown) == (event, 2, [])


def test_second_refusal_counts(tmp_path: Path) -> None:
    """Where the client's own bytes are refused as well, the client gets that, and nothing is learned."""
    [reply], [row], requests, shown = make_calls(tmp_path, refusing(then=404), STREAM_REQUEST)
    assert (reply.status, reply.body, row["error_status"], row["attempts"]) == (404, OTHER, 404, 2)
    assert (len(requests), shown) == (2, [])


BEHIND = OTHER + b" " * MAX_ERROR_BYTES + REFUSAL


@pytest.mark.parametrize(
    ("answer", "request_body", "facts"),
    [
        (refusing(body=OTHER), STREAM_REQUEST, {}),
        (refusing(body=BEHIND), STREAM_REQUEST, {}),
        (refusing(status=500, body=OTHER), STREAM_REQUEST, {}),
        (refusing(status=429, body=b'{"error":"Unknown field. Slow down."}'), STREAM_REQUEST, {}),
        (refusing(body=b'{"error":{"message":"Unknown model name: m"}}'), STREAM_REQUEST, {}),
        (refusing(status=500, body=b'{"error":"unexpected end of input"}'), STREAM_REQUEST, {}),
        (refusing(status=200, body=OTHER), STREAM_REQUEST, {}),
        (refusing(), STREAM_REQUEST, {"metering": "require"}),
        (refusing(), b'{"model":"m","stream":true,"stream_options":{}}', {}),
        (refusing(), b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}', {}),
    ],
    ids=[
        "other",
        "far behind",
        "500",
        "429",
        "unknown model",
        "unexpected end",
        "200",
        "require",
        "client's own",
        "client's own whole",
    ],
)
def test_asked_once(
    answer: Callable[[httpx.Request], httpx.Response], request_body: bytes, facts: dict[str, Any], tmp_path: Path
) -> None:
    """Any other refusal is the client's, byte for byte; so is one of what it sent itself, or with `require`."""
    [reply], [row], requests, shown = make_calls(tmp_path, answer, request_body, **facts)
    expected = answer(httpx.Request("POST", "http://h", content=b"stream_options"))
    assert isinstance(expected.stream, Chunks)
    assert reply.status == expected.status_code
    assert reply.body == b"".join(step for step in expected.stream._steps if isinstance(step, bytes))
    assert (len(requests), row["attempts"], shown) == (1, 1, [])


def test_null_is_none(tmp_path: Path) -> None:
    """A client that says null has sent none; its own bytes are what is sent again."""
    body = b'{"model":"m","stream":true,"stream_options":null}'

    def answer(request: httpx.Request) -> httpx.Response:
        if json.loads(request.content)["stream_options"]:
            return httpx.Response(400, headers=JSON_TYPE, stream=Chunks(REFUSAL))
        return httpx.Response(200, headers=SSE_TYPE, stream=Chunks(STRIPPED))

    [reply], [row], requests, _ = make_calls(tmp_path, answer, body)
    assert (reply.body, row["attempts"], requests[1].content) == (STRIPPED, 2, body)


def test_good_pair_teaches_nothing(tmp_path: Path) -> None:
    """A refusal by a provider that takes `stream_options` otherwise is asked again, for that request alone."""
    replies = iter([200, 400, 200])

    def answer(request: httpx.Request) -> httpx.Response:
        if b"stream_options" in request.content and next(replies) == 400:
            return httpx.Response(400, headers=JSON_TYPE, stream=Chunks(REFUSAL))
        return httpx.Response(200, headers=SSE_TYPE, stream=Chunks(*EVENTS))

    _, found, _, shown = make_calls(tmp_path, answer, *[STREAM_REQUEST] * 3)
    assert [(row["attempts"], row["input_tokens"]) for row in found] == [(1, 7), (2, 7), (1, 7)]
    assert shown == []


def test_the_head_of_a_supported_pair_is_not_held(tmp_path: Path) -> None:
    """Once a stream with `stream_options` has been good, the head of the next does not wait for its first event."""

    async def main() -> None:
        silent = asyncio.Event()
        steps = iter([EVENTS, [silent, *EVENTS]])

        def answer(request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, headers=SSE_TYPE, stream=Chunks(*next(steps)))

        async with running("middleware", configured(tmp_path), answer) as app:
            await call(app, STREAM_REQUEST)
            one = Call(app, STREAM_REQUEST)
            task = asyncio.create_task(one.run())
            for _ in range(100):
                await asyncio.sleep(0)
            assert [message["type"] for message in one.messages] == ["http.response.start"]
            silent.set()
            await task
            assert one.body == STRIPPED

    asyncio.run(main())


def test_left_while_asked_again(tmp_path: Path) -> None:
    """A client that leaves during the second asking ends it at once, and its row says so."""

    async def main() -> dict[str, Any]:
        async def answer(request: httpx.Request) -> httpx.Response:
            if b"stream_options" in request.content:
                return httpx.Response(400, headers=JSON_TYPE, stream=Chunks(REFUSAL))
            one.gone.set()
            await asyncio.Event().wait()
            raise AssertionError

        async with running("middleware", configured(tmp_path), answer) as app:  # type: ignore[arg-type]
            one = Call(app, STREAM_REQUEST)
            await one.run()
            [row] = await rows(app)
            assert one.messages == []
            return row

    row = asyncio.run(main())
    assert (row["end_reason"], row["disconnect"]) == ("client_disconnected", "cancelled")
    assert (row["attempts"], row["latency_ms"], row["success"]) == (2, None, False)


def test_refusal_that_breaks_off(tmp_path: Path) -> None:
    """What has come of a refusal that breaks off reaches the client before the break."""

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(400, headers=JSON_TYPE, stream=Chunks(OTHER[:9], httpx.ReadError("gone")))

    async def main() -> Call:
        async with running("middleware", configured(tmp_path), Provided(answer)) as app:
            one = Call(app, STREAM_REQUEST)
            with pytest.raises(Exception, match="broke off"):
                await one.run()
            return one

    one = asyncio.run(main())
    assert (one.status, one.body, one.ended) == (400, OTHER[:9], False)
