"""A provider that needs no key and no network: it answers every chat completion with the same words.

It speaks OpenAI's protocol as far as metering can tell: with `stream_options.include_usage` every chunk has
`"usage": null` and a last chunk without choices has the counts. A token is a word.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

REPLY = "Every token that passes through here is counted, priced and written down, and nobody waits for it."
CREATED = 1_700_000_000
SECONDS_PER_WORD = 0.01


class MockProvider:
    """An ASGI application; `received` holds the bodies of the requests as they came, the newest last (at most 100)."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.app = Starlette(routes=[Route("/v1/chat/completions", self._chat, methods=["POST"])])

    async def _chat(self, request: Request) -> Response:
        body = await request.body()
        self.received = [*self.received[-99:], body]
        try:
            asked = json.loads(body)
            words = str(asked.get("messages") or "").split()
            model = str(asked["model"])
        except (ValueError, KeyError, AttributeError):
            error = {"message": "mock: not a chat completion", "type": "invalid_request_error"}
            return JSONResponse({"error": error}, 400)
        count = len(REPLY.split())
        usage = {"prompt_tokens": len(words), "completion_tokens": count, "total_tokens": len(words) + count}
        common = {
            "id": "chatcmpl-" + hashlib.sha256(str(asked.get("messages")).encode()).hexdigest()[:24],
            "created": CREATED,
            "model": model,
        }
        if asked.get("stream") is not True:
            message = {"role": "assistant", "content": REPLY}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            return JSONResponse({**common, "object": "chat.completion", "choices": choices, "usage": usage})
        wanted = (asked.get("stream_options") or {}).get("include_usage") is True
        events = _events(common, usage if wanted else None)
        return StreamingResponse(events, media_type="text/event-stream")


async def _events(common: dict[str, Any], usage: dict[str, int] | None) -> AsyncIterator[bytes]:
    chunk = {**common, "object": "chat.completion.chunk"}
    asked = {} if usage is None else {"usage": None}
    deltas: list[dict[str, str]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": word + " "} for word in REPLY.split()]
    for delta in deltas:
        yield _event({**chunk, "choices": [{"index": 0, "delta": delta, "finish_reason": None}], **asked})
        await asyncio.sleep(SECONDS_PER_WORD)
    yield _event({**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], **asked})
    if usage is not None:
        yield _event({**chunk, "choices": [], "usage": usage})
    yield b"data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"
