"""Requests that can't be served: each is refused in OpenAI's shape, quickly, and nothing of it goes anywhere."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from arbstr_asgi.config.settings import Limits
from tests.support.asgi_client import (
    JSON_TYPE,
    PLAIN,
    PLAIN_REQUEST,
    STREAM_REQUEST,
    WAYS,
    App,
    Call,
    Provided,
    Way,
    call,
    configured,
    rows,
    running,
)

pytestmark = pytest.mark.parametrize("way", WAYS)

MIB = 1024 * 1024
SMALL = Limits(max_body_bytes=1000, max_body_bytes_in_flight=1500, body_timeout=0.1)

MALFORMED: dict[str, tuple[bytes, str | None]] = {
    "empty": (b"", None),
    "not JSON": (b"model=m&stream=true", None),
    "cut off": (STREAM_REQUEST[:-1], None),
    "array": (b"[" + STREAM_REQUEST + b"]", None),
    "string": (b'"m"', None),
    "null": (b"null", None),
    "no model": (b'{"messages":[]}', "model"),
    "model null": (b'{"model":null}', "model"),
    "model number": (b'{"model":4}', "model"),
    "model object": (b'{"model":{"name":"m"}}', "model"),
    "model of 256 characters": (b'{"model":"' + "é".encode() * 256 + b'"}', "model"),
    "stream text": (b'{"model":"m","stream":"yes"}', "stream"),
    "stream number": (b'{"model":"m","stream":1}', "stream"),
    "100,000 brackets": (b'{"model":"m","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", None),
    "100,000 open objects": (b'{"a":' * 100_000, None),
    "brackets behind a surrogate": (b'{"model":"m","a":"\\ud83d","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", None),
    "invalid UTF-8": (b'{"model":"m","messages":["\xff"]}', None),
    "raw surrogate": (b'{"model":"m","messages":["\xed\xa0\xbd"]}', None),
    "invalid UTF-8 in the model": (b'{"model":"\xc3"}', None),
    "UTF-16": ('{"model":"m"}'.encode("utf-16"), None),
    "NaN": (b'{"model":"m","temperature":NaN}', None),
    "Infinity": (b'{"model":"m","temperature":-Infinity}', None),
    "NaN and a surrogate": (b'{"model":"m","a":"\\ud83d","temperature":NaN}', None),
    "two objects": (PLAIN_REQUEST * 2, None),
    "two BOMs": (b"\xef\xbb\xbf" * 2 + PLAIN_REQUEST, None),
    "control character": (b'{"model":"m\x00"}', None),
}


async def healthy(app: App, provided: Provided, before: int = 0) -> None:
    """Nothing of what came before reached the provider, or the ledger but for `before` rows; the next call is good."""
    assert not provided.requests
    assert len(await rows(app)) == before
    reply = await call(app, PLAIN_REQUEST)
    assert (reply.status, reply.body) == (200, PLAIN)
    assert len(provided.requests) == 1
    found = await rows(app)
    assert len(found) == before + 1
    assert found[-1]["success"] is True


def test_malformed(way: Way, tmp_path: Path) -> None:
    """A body that is no chat completion is a 400 that names the parameter, within a second, in one chunk or in many."""

    async def main() -> None:
        provided = Provided()
        async with running(way, configured(tmp_path), provided) as app:
            for name, (body, param) in MALFORMED.items():
                pieces = [body[at : at + 4096] for at in range(0, len(body), 4096)] or [b"", b""]
                for chunks in (body, pieces):
                    began = time.process_time()
                    reply = await call(app, chunks)
                    assert reply.status == 400, name
                    assert reply.error["type"] == "invalid_request_error", name
                    assert reply.error["param"] == param, name
                    assert reply.headers["x-arbstr-request-id"], name
                    assert time.process_time() - began < 1.0, name
            await healthy(app, provided)

    asyncio.run(main())


@pytest.mark.parametrize("announced", [True, False], ids=["content-length", "chunked"])
def test_too_large(way: Way, announced: bool, tmp_path: Path) -> None:
    """A body over the limit is a 413: unread where its length is announced, and as soon as it passes it where not."""

    async def main() -> None:
        provided = Provided()
        async with running(way, configured(tmp_path, limits=SMALL), provided) as app:
            headers = {**JSON_TYPE, "content-length": "1001"} if announced else JSON_TYPE
            reply = await call(app, [b"x" * 500] * 100, headers=headers)
            assert (reply.status, reply.error["code"]) == (413, "request_too_large")
            assert reply.receives == (0 if announced else 3)
            lying = await call(app, [b"x" * 500] * 3, headers={**JSON_TYPE, "content-length": "5"})
            assert lying.status == 413
            await healthy(app, provided)
            whole = PLAIN_REQUEST.ljust(1000)
            assert (await call(app, whole)).status == 200
            assert provided.requests[-1].content == whole

    asyncio.run(main())


@pytest.mark.parametrize("length", ["9" * 5000, "-1", "1e3", "²", "0x10", "", "1001, 1001"])
def test_odd_content_length(way: Way, length: str, tmp_path: Path) -> None:
    """A content-length that is no number we can use is never a crash: the body's own size decides, or it is a 413."""

    async def main() -> None:
        provided = Provided()
        headers = [(b"content-type", b"application/json"), (b"content-length", length.encode())]
        async with running(way, configured(tmp_path, limits=SMALL), provided) as app:
            reply = await call(app, PLAIN_REQUEST, headers=headers)
            assert reply.status == (413 if length.startswith("99") else 200)

    asyncio.run(main())


def test_too_slow(way: Way, tmp_path: Path) -> None:
    """A body that does not end in time is a 408."""

    async def main() -> None:
        provided = Provided()
        async with running(way, configured(tmp_path, limits=SMALL), provided) as app:
            began = time.monotonic()
            reply = await call(app, PLAIN_REQUEST, stall=True)
            assert (reply.status, reply.error["code"]) == (408, "request_timeout")
            assert 0.09 < time.monotonic() - began < 2
            for _ in range(3):  # and what was held of it is given back
                assert (await call(app, b"x" * 600, stall=True)).status == 408
            await healthy(app, provided)
            assert (await call(app, PLAIN_REQUEST.ljust(1000))).status == 200

    asyncio.run(main())


def test_too_much_in_flight(way: Way, tmp_path: Path) -> None:
    """What all clients send at once is bounded: a 503 to retry, and every byte is given back however its call ended."""

    async def main() -> None:
        provided = Provided()
        limits = Limits(max_body_bytes=1000, max_body_bytes_in_flight=1500, body_timeout=10)
        async with running(way, configured(tmp_path, limits=limits), provided) as app:
            waiting = Call(app, PLAIN_REQUEST.ljust(900), stall=True)
            task = asyncio.create_task(waiting.run())
            await asyncio.sleep(0.02)
            for _ in range(3):
                refused = await call(app, [PLAIN_REQUEST.ljust(300), b" " * 301])
                assert (refused.status, refused.error["code"]) == (503, "overloaded")
                assert refused.headers["retry-after"] == "1"
            assert (await call(app, PLAIN_REQUEST.ljust(600))).status == 200  # and its bytes are given back
            assert (await call(app, b"x" * 600)).status == 400
            gone = Call(app, b"x" * 600, stall=True)
            gone.gone.set()
            assert not (await gone.run()).messages
            cancelled = asyncio.create_task(Call(app, b"x" * 600, stall=True).run())
            await asyncio.sleep(0.02)
            cancelled.cancel()
            await asyncio.wait([cancelled])
            assert (await call(app, PLAIN_REQUEST.ljust(600))).status == 200
            waiting.end.set()
            assert (await task).status == 200
            # Nothing is held now, or these two would not fit to the last byte.
            pair = [Call(app, PLAIN_REQUEST.ljust(size), stall=True) for size in (1000, 500)]
            tasks = [asyncio.create_task(one.run()) for one in pair]
            await asyncio.sleep(0.02)
            for one in pair:
                one.end.set()
            assert [(await task).status for task in tasks] == [200, 200]

    asyncio.run(main())


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "text/plain;charset=UTF-8; application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonx",
        "",
        None,
    ],
)
def test_content_type(way: Way, content_type: str | None, tmp_path: Path) -> None:
    """What a browser sends across sites without asking (a form, text) is a 415, even where its body would do."""

    async def main() -> None:
        provided = Provided()
        async with running(way, configured(tmp_path), provided) as app:
            reply = await call(
                app, PLAIN_REQUEST, headers={} if content_type is None else {"content-type": content_type}
            )
            assert (reply.status, reply.error["code"]) == (415, "unsupported_media_type")
            assert reply.receives == 0
            await healthy(app, provided)

    asyncio.run(main())


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON ; charset=utf-8"])
def test_good_content_type(way: Way, content_type: str, tmp_path: Path) -> None:
    """JSON is JSON in any case and with parameters; `identity` is no encoding."""

    async def main() -> None:
        headers = {"Content-Type": content_type, "Content-Encoding": "Identity"}
        async with running(way, configured(tmp_path), Provided()) as app:
            assert (await call(app, PLAIN_REQUEST, headers=headers)).status == 200

    asyncio.run(main())


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip", "zstd"])
def test_content_encoding(way: Way, encoding: str, tmp_path: Path) -> None:
    """A compressed request is a 415: nothing small becomes large in here."""

    async def main() -> None:
        provided = Provided()
        async with running(way, configured(tmp_path), provided) as app:
            reply = await call(app, PLAIN_REQUEST, headers={**JSON_TYPE, "content-encoding": encoding})
            assert (reply.status, reply.error["code"]) == (415, "unsupported_content_encoding")
            assert reply.receives == 0
            await healthy(app, provided)

    asyncio.run(main())


@pytest.mark.parametrize("chunks", [[], [b""], [STREAM_REQUEST[:9]], [STREAM_REQUEST]])
def test_client_leaves(way: Way, chunks: list[bytes], tmp_path: Path) -> None:
    """A client that hangs up before its body's end gets no answer, and nothing comes of what it sent."""

    async def main() -> None:
        provided = Provided()
        async with running(way, configured(tmp_path), provided) as app:
            leaving = Call(app, chunks, stall=True)
            leaving.gone.set()
            await leaving.run()
            assert leaving.messages == []
            await healthy(app, provided)

    asyncio.run(main())


def test_large_and_odd(way: Way, tmp_path: Path) -> None:
    """32 MiB that can only be edited slowly are refused within seconds; the call named a model, so it has a row."""
    start = b'{"model":"m","stream":true,"stream\\u005foptions":{},"x":['
    body = start + b"1," * ((32 * MIB - len(start) - 3) // 2) + b"1]}"
    assert 32 * MIB - 2 <= len(body) <= 32 * MIB

    async def main() -> None:
        provided = Provided()
        async with running(way, configured(tmp_path), provided) as app:
            began = time.monotonic()
            reply = await call(app, body)
            assert time.monotonic() - began < 5
            assert (reply.status, reply.error["param"]) == (400, "stream_options")
            [row] = await rows(app)
            assert (row["error_status"], row["success"], row["usage_source"]) == (400, False, "none")
            await healthy(app, provided, before=1)

    asyncio.run(main())


ODD = {
    "escaped lone surrogates": b'{"model":"m","messages":[{"role":"user","content":"\\uD83D"}]}',
    "lone surrogate in the model": b'{"model":"m\\ud83d"}',
    "no messages": b'{"model":"m","messages":[]}',
    "BOM": b'\xef\xbb\xbf{"model":"m"}',
    "blanks": b'\r\n\t {"model" : "m" } \n',
    "duplicates": b'{"model":"x","model":"m","stream":true,"stream":false}',
    "large and exact numbers": b'{"model":"m","seed":' + b"9" * 5000 + b',"temperature":1.0,"top_p":1e999}',
    "NUL in the model": b'{"model":"m\\u0000"}',
    "empty model": b'{"model":""}',
    "model of 255 characters": b'{"model":"' + "é".encode() * 255 + b'"}',
    "stream_options without a stream": b'{"model":"m","stream":null,"stream_options":"x"}',
    "wrong messages": b'{"model":"m","messages":"hello"}',
}


def test_for_the_provider_to_judge(way: Way, tmp_path: Path) -> None:
    """A valid body, however odd, reaches the provider byte for byte and has its row."""

    async def main() -> None:
        provided = Provided()
        async with running(way, configured(tmp_path), provided) as app:
            for name, body in ODD.items():
                reply = await call(app, [body[:7], b"", body[7:]])
                assert (reply.status, reply.body) == (200, PLAIN), name
                assert provided.requests[-1].content == body, name
            assert [row["success"] for row in await rows(app)] == [True] * len(ODD)

    asyncio.run(main())


@pytest.mark.parametrize("path", ["", "/", "/v1/chat/completions/", "/v1/chat/completion", "/V1/chat/completions"])
def test_other_paths(way: Way, path: str, tmp_path: Path) -> None:
    """Only the one path spends: any other is the host's, or a 404 (or a redirect) of the sub-app."""

    async def main() -> None:
        provided = Provided()
        async with running(way, configured(tmp_path), provided) as app:
            reply = await call(app, PLAIN_REQUEST, path=path)
            assert reply.status in ((299,) if way == "middleware" else (307, 404))
            assert not provided.requests

    asyncio.run(main())


def refused(way: Way, folder: Path, body: bytes, provider: dict[str, Any], **facts: Any) -> tuple[Call, dict[str, Any]]:
    """The reply to a body that is refused without asking the provider, and its row."""

    async def main() -> tuple[Call, dict[str, Any]]:
        provided = Provided()
        async with running(way, configured(folder, provider, **facts), provided) as app:
            reply = await call(app, body)
            [row] = await rows(app)
            assert not provided.requests
            return reply, row

    return asyncio.run(main())


def test_unknown_model(way: Way, tmp_path: Path) -> None:
    """A model that no provider lists is OpenAI's 404, with a row that says what the client got."""
    reply, row = refused(way, tmp_path, b'{"model":"gpt-9","stream":true}', {"models": ("gpt-4o",)})
    assert reply.status == 404
    assert (reply.error["code"], reply.error["param"]) == ("model_not_found", "model")
    assert (row["model"], row["provider"], row["error_status"]) == ("gpt-9", None, 404)
    assert (row["success"], row["end_reason"], row["usage_source"]) == (False, "completed", "none")
    assert row["error_message"] == "invalid_request_error: model_not_found"
    assert row["cost_sats"] is None


@pytest.mark.parametrize("options", ['"x"', "[]", "3", "true"])
def test_required_metering(way: Way, options: str, tmp_path: Path) -> None:
    """Where metering is required, `stream_options` that can't hold it are a 400 with a row."""
    body = b'{"model":"m","stream":true,"stream_options":' + options.encode() + b"}"
    reply, row = refused(way, tmp_path, body, {}, metering="require")
    assert (reply.status, reply.error["param"]) == (400, "stream_options")
    assert (row["error_status"], row["success"], row["model"]) == (400, False, "m")
    assert json.dumps(row, default=str).count("stream_options") == 0
