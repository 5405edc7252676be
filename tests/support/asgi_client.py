"""A small ASGI client, and a provider made by hand: what in-process tests talk with."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import httpx
from asgi_lifespan import LifespanManager

from arbstr_asgi import Arbstr, ArbstrMiddleware, Config, DatabaseConfig, Provider, Server
from tests.support.databases import migrated_file

Message = MutableMapping[str, Any]
App = Any
Way = Literal["middleware", "sub-app"]

WAYS: tuple[Way, ...] = ("middleware", "sub-app")
PATH = "/v1/chat/completions"
SECONDS = 20.0
JSON_TYPE = {"content-type": "application/json"}
SSE_TYPE = {"content-type": "text/event-stream"}
USAGE = b'{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}'
START = b'data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"m-1",'
EVENTS = (
    START + b'"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}],"usage":null}\n\n',
    START + b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}\n\n',
    START + b'"choices":[],"usage":' + USAGE + b"}\n\n",
    b"data: [DONE]\n\n",
)
STRIPPED = b"".join(event.replace(b',"usage":null', b"") for event in EVENTS if b"prompt_tokens" not in event)
PLAIN = (
    b'{"id":"c1","object":"chat.completion","model":"m-1","choices":[{"index":0,"message":{"role":"assistant",'
    b'"content":"Hi"},"finish_reason":"stop"}],"usage":' + USAGE + b"}"
)
PLAIN_REQUEST = b'{"model":"m","messages":[]}'
STREAM_REQUEST = b'{"model":"m","stream":true,"messages":[]}'


class Call:
    """One request and what came back. `gone` hangs up; `end` finishes a body that stalls."""

    def __init__(
        self,
        app: App,
        body: bytes | Sequence[bytes] = b"",
        *,
        headers: Mapping[str, str] | Sequence[tuple[bytes, bytes]] = JSON_TYPE,
        path: str = PATH,
        method: str = "POST",
        stall: bool = False,
        scope: Mapping[str, Any] | None = None,
    ) -> None:
        self.app = app
        self.messages: list[Message] = []
        self.times: list[float] = []
        self.receives = 0
        self.gone = asyncio.Event()
        self.end = asyncio.Event()
        self.begun = asyncio.Event()
        if not stall:
            self.end.set()
        self._chunks = [body] if isinstance(body, bytes) else list(body)
        raw = [(k.encode(), v.encode()) for k, v in headers.items()] if isinstance(headers, Mapping) else [*headers]
        self.scope: Message = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": raw,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
            **(scope or {}),
        }

    async def run(self) -> "Call":
        """Let the app answer; what it raises comes out."""
        async with asyncio.timeout(SECONDS):
            await self.app(self.scope, self.receive, self.send)
        return self

    async def receive(self) -> Message:
        """The chunks of the body, then nothing until `gone`."""
        self.receives += 1
        if self._chunks:
            chunk = self._chunks.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": bool(self._chunks) or not self.end.is_set()}
        if not self.end.is_set():
            waiting = [asyncio.ensure_future(event.wait()) for event in (self.end, self.gone)]
            try:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in waiting:
                    task.cancel()
            if self.end.is_set():
                return {"type": "http.request", "body": b"", "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Keep what the app says, with the time."""
        self.messages.append(message)
        self.times.append(time.monotonic())
        if message.get("body"):
            self.begun.set()

    @property
    def status(self) -> int:
        """The status, 0 before there is one."""
        return int(self.messages[0]["status"]) if self.messages else 0

    @property
    def headers(self) -> dict[str, str]:
        """The reply's headers."""
        return {name.decode(): value.decode("latin-1") for name, value in self.messages[0]["headers"]}

    @property
    def body(self) -> bytes:
        """The reply's body so far."""
        return b"".join(message.get("body", b"") for message in self.messages[1:])

    @property
    def ended(self) -> bool:
        """Whether the app has said that the body is complete."""
        return len(self.messages) > 1 and not self.messages[-1].get("more_body", False)

    @property
    def error(self) -> dict[str, Any]:
        """The error in OpenAI's shape; fails the test for any other shape."""
        assert self.headers["content-type"] == "application/json"
        assert int(self.headers["content-length"]) == len(self.body)
        assert self.ended
        error: dict[str, Any] = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        assert isinstance(error["type"], str)
        return error


async def call(app: App, body: bytes | Sequence[bytes] = b"", **options: Any) -> Call:
    """One whole call."""
    return await Call(app, body, **options).run()


class Chunks(httpx.AsyncByteStream):
    """A reply's body: chunks, pauses (an event to wait for) and failures (an exception to raise)."""

    def __init__(self, *steps: bytes | asyncio.Event | Exception) -> None:
        self._steps = steps

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for step in self._steps:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, asyncio.Event):
                await step.wait()
            else:
                yield step


class Provided:
    """A provider that remembers its requests. `answer` makes the replies; by default they are good ones."""

    def __init__(self, answer: Callable[[httpx.Request], httpx.Response] | None = None) -> None:
        self.requests: list[httpx.Request] = []
        self.answer = answer or good

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self.answer(request)


def good(request: httpx.Request) -> httpx.Response:
    """A stream for who asks for one, else a completion."""
    if json.loads(request.content.removeprefix(b"\xef\xbb\xbf"), parse_int=float).get("stream") is True:
        return httpx.Response(200, headers=SSE_TYPE, stream=Chunks(*EVENTS))
    headers = {**JSON_TYPE, "content-length": str(len(PLAIN))}
    return httpx.Response(200, headers=headers, stream=Chunks(PLAIN))


def configured(folder: Path, provider: Mapping[str, Any] | None = None, **facts: Any) -> Config:
    """A configuration with one provider, and an SQLite ledger in `folder`."""
    facts.setdefault("server", Server(public=True))
    if "database" not in facts:
        facts["database"] = DatabaseConfig(path=migrated_file(folder / "ledger.db"))
    return Config(
        providers=(Provider(**{"name": "p", "url": "http://provider.invalid/v1", **(provider or {})}),), **facts
    )


async def host(scope: Message, receive: Any, send: Any) -> None:
    """A host application with one answer for everything, and no lifespan."""
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 299, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"host"})


def built(way: Way, config: Config, provided: Callable[[httpx.Request], httpx.Response], **options: Any) -> App:
    """The gateway in front of `provided`, in one of its forms."""
    transport = httpx.MockTransport(provided)
    if way == "middleware":
        return ArbstrMiddleware(host, config, transport=transport, **options)
    return Arbstr(config, transport=transport, **options)


@asynccontextmanager
async def running(
    way: Way, config: Config, provided: Callable[[httpx.Request], httpx.Response], **options: Any
) -> AsyncIterator[App]:
    """The same, started and stopped through the lifespan protocol."""
    app = built(way, config, provided, **options)
    async with asyncio.timeout(SECONDS), LifespanManager(app):
        yield app


async def rows(app: App) -> list[dict[str, Any]]:
    """Every row, the oldest first."""
    await app.ledger.flush()
    return [*reversed(await app.ledger.rows())]
