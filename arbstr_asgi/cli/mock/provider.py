"""A mock provider: answers every chat completion with the same text, without key or network."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Send

from arbstr_asgi.cli.mock.directives import UnknownDirective, directives, status

REPLY = "Every token that passes through here is counted, priced and written down, and nobody waits for it."
CREATED = 1_700_000_000
SECONDS_PER_WORD = 0.01
SECONDS_PER_SLOW_WORD = 0.2
STALL_SECONDS = 30.0
MAX_RECEIVED = 100  # bodies


ERROR = {"error": {"message": "mock: told to fail", "type": "server_error", "param": None, "code": "mock"}}
WORDS = REPLY.split()


def token_usage(input_tokens: int, output_tokens: int = len(WORDS)) -> dict[str, int]:
    """The `usage` object of these counts."""
    return {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
    }


def completion(common: dict[str, Any], input_tokens: int, active: frozenset[str]) -> bytes:
    """A complete response to `input_tokens` tokens."""
    if active & {"error-event", "late-error"}:
        return _to_json(ERROR)
    choices = [{"index": 0, "message": {"role": "assistant", "content": REPLY}, "finish_reason": "stop"}]
    payload = {**common, "object": "chat.completion", "choices": choices}
    return _to_json(payload if "no-usage" in active else {**payload, "usage": token_usage(input_tokens)})


def events(common: dict[str, Any], input_tokens: int, active: frozenset[str], *, with_usage: bool) -> list[bytes]:
    """The same as a stream; with usage if `with_usage`."""
    blocks = list(_events(common, input_tokens, active, with_usage=with_usage and "no-usage" not in active))
    if "error-event" in active:
        blocks = [_event(ERROR)]
    elif "late-error" in active:
        blocks = [*blocks[: len(blocks) // 2], _event(ERROR)]
    if "comments" in active:
        blocks = [b": mock\n\n" + event for event in blocks]
    return blocks


def _events(common: dict[str, Any], input_tokens: int, active: frozenset[str], *, with_usage: bool) -> Iterator[bytes]:
    chunk = {**common, "object": "chat.completion.chunk"}
    deltas = [{"role": "assistant", "content": ""}, *({"content": word + " "} for word in WORDS), {}]
    for index, delta in enumerate(deltas):
        finish = "stop" if not delta else None
        payload = {**chunk, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
        if "usage-everywhere" in active:
            payload["usage"] = token_usage(input_tokens, min(index, len(WORDS)))
        elif with_usage:
            payload["usage"] = None
        yield _event(payload)
    if with_usage:
        yield _event({**chunk, "choices": [], "usage": token_usage(input_tokens)})
    if "no-done" not in active:
        yield b"data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + _to_json(value) + b"\n\n"


def _to_json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


class MockProvider:
    """An ASGI application; `received` holds the last request bodies, the newest last (at most 100).

    `name` is the one that directives address.
    """

    def __init__(self, name: str = "mock") -> None:
        self.name = name
        self.received: list[bytes] = []
        self.app = Starlette(routes=[Route("/v1/chat/completions", self._chat, methods=["POST"])])

    async def _chat(self, request: Request) -> Response:
        body = await request.body()
        self.received = [*self.received[1 - MAX_RECEIVED :], body]
        try:
            chat = _read(body, self.name)
        except UnknownDirective as error:
            return _bad_request(str(error))
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            return _bad_request("mock: not a chat completion")
        disconnected = "stall" in chat.active and await _wait_for_disconnect(request, STALL_SECONDS)
        return _json(ERROR, 504) if disconnected else _answer(chat)


class _ChatRequest(NamedTuple):
    """A parsed request; `common` are the members that every part of the response has."""

    common: dict[str, Any]
    input_tokens: int
    stream: bool
    usage: bool
    active: frozenset[str]


def _read(body: bytes, name: str) -> _ChatRequest:
    chat = json.loads(body)
    messages = chat.get("messages")
    digest = hashlib.sha256(str(messages).encode("utf-8", "replace")).hexdigest()
    return _ChatRequest(
        {"id": f"chatcmpl-{digest[:24]}", "created": CREATED, "model": str(chat["model"])},
        len(str(messages or "").split()),
        chat.get("stream") is True,
        (chat.get("stream_options") or {}).get("include_usage") is True,
        directives(messages, name),
    )


def _answer(chat: _ChatRequest) -> Response:
    active, error_status = chat.active, status(chat.active)
    if "reset" in active:
        # No answer is more than a status in between, and all that hypercorn ends without a sound.
        return _Reply([], active | {"cut"}, status=102)
    if error_status is not None:
        return _json(ERROR, error_status)
    if chat.stream:
        return _Reply(
            events(chat.common, chat.input_tokens, active, with_usage=chat.usage), active, kind="text/event-stream"
        )
    body = completion(chat.common, chat.input_tokens, active)
    middle = len(body) // 2
    return _Reply([body[:middle], body[middle:]], active, length=len(body))


class _Reply(StreamingResponse):
    """A response in parts, with a pause after each, that may stop in the middle."""

    def __init__(
        self,
        parts: Sequence[bytes],
        active: frozenset[str],
        *,
        status: int = 200,
        kind: str = "application/json",
        length: int | None = None,
    ) -> None:
        headers = {} if length is None else {"content-length": str(length)}
        super().__init__(self._stream_parts(parts, active), status, headers, kind)
        self._whole = not active & {"cut", "hang"}

    async def _stream_parts(self, parts: Sequence[bytes], active: frozenset[str]) -> AsyncIterator[bytes]:
        pause = SECONDS_PER_SLOW_WORD if "slow" in active else SECONDS_PER_WORD
        for part in parts if self._whole else parts[: len(parts) // 2]:
            yield part
            await asyncio.sleep(pause)
        if "hang" in active:
            await asyncio.sleep(STALL_SECONDS)

    async def stream_response(self, send: Send) -> None:
        """Send it; a body without an end makes the server close the connection."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for part in self.body_iterator:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        if self._whole:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _wait_for_disconnect(request: Request, seconds: float) -> bool:
    """Wait for at most `seconds`; True as soon as the client has disconnected."""
    try:
        async with asyncio.timeout(seconds):
            while (await request.receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        return False
    return True


def _json(value: dict[str, Any], status_code: int) -> Response:
    return Response(json.dumps(value).encode(), status_code, media_type="application/json")


def _bad_request(message: str) -> Response:
    return _json({"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}, 400)
