"""What a chunk of a stream costs: one look at it and one `send`; no task, no timer, nothing else of the loop's."""

import asyncio
from collections import Counter
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from arbstr_asgi import Arbstr, Config, DatabaseConfig, Provider, Server
from arbstr_asgi.gateway import call

TEN_SECONDS = 10.0
LEDGER_SECONDS = 0.15  # in which the row of the answer is written, so that its timers are not counted
CHUNK = (
    b'data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"m-1",'
    b'"choices":[{"index":0,"delta":{"content":"word "},"finish_reason":null}],"usage":null}\n\n'
)
USAGE = b'data: {"id":"c1","model":"m-1","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}\n\n'
BODY = b'{"model":"m","stream":true}'


class CountingLoop(asyncio.SelectorEventLoop):
    """An event loop that counts the tasks and timers it is asked for, while `counting`."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.counting = False

    def create_task(self, *arguments: Any, **options: Any) -> Any:
        """Count, and create."""
        self.counts["task"] += self.counting
        return super().create_task(*arguments, **options)

    def call_at(self, *arguments: Any, **options: Any) -> Any:
        """Count, and schedule; `call_later` comes through here as well."""
        self.counts["timer"] += self.counting
        return super().call_at(*arguments, **options)


class CountingMeter:
    """A meter whose feeds are counted."""

    def __init__(self, meter: Any, loop: CountingLoop) -> None:
        self._meter = meter
        self._loop = loop

    def feed(self, chunk: bytes) -> bytes:
        """Count, and feed."""
        self._loop.counts["feed"] += self._loop.counting
        fed: bytes = self._meter.feed(chunk)
        return fed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._meter, name)


class Stream(httpx.AsyncByteStream):
    """`chunks` events, usage and [DONE], each after a turn of the loop; the loop counts from the first to the last."""

    def __init__(self, chunks: int, loop: CountingLoop) -> None:
        self._chunks = chunks
        self._loop = loop

    async def __aiter__(self) -> Any:
        yield CHUNK
        await asyncio.sleep(LEDGER_SECONDS)
        self._loop.counting = True
        for _ in range(self._chunks):
            await asyncio.sleep(0)
            yield CHUNK
        self._loop.counting = False
        yield USAGE + b"data: [DONE]\n\n"


def stream(folder: Path, chunks: int, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Relay one stream; what it took of the loop, of the meter and of the server while its chunks went by."""
    loop = CountingLoop()

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Stream(chunks, loop))

    open_meter = call.open_meter

    def open_counted(**options: Any) -> Any:
        return CountingMeter(open_meter(**options), loop)

    requests: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": BODY, "more_body": False}]

    async def receive() -> MutableMapping[str, Any]:
        if requests:
            return requests.pop()
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def send(message: MutableMapping[str, Any]) -> None:
        loop.counts["send"] += loop.counting and message["type"] == "http.response.body"

    async def main() -> None:
        config = Config(
            providers=(Provider(name="p", url="http://provider.invalid/v1"),),
            server=Server(public=True),
            database=DatabaseConfig(path=str(folder / f"{chunks}.db")),
        )
        arbstr = Arbstr(config, transport=httpx.MockTransport(answer))
        async with asyncio.timeout(TEN_SECONDS), arbstr.lifespan():
            await arbstr.ledger.flush()
            await arbstr(SCOPE, receive, send)
            await arbstr.ledger.flush()
            (row,) = await arbstr.ledger.rows()
            assert (row["input_tokens"], row["end_reason"]) == (7, "completed")

    monkeypatch.setattr(call, "open_meter", open_counted)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main())
    monkeypatch.undo()
    return loop.counts


SCOPE = {
    "type": "http",
    "method": "POST",
    "scheme": "http",
    "path": "/v1/chat/completions",
    "raw_path": b"/v1/chat/completions",
    "query_string": b"",
    "root_path": "",
    "headers": [(b"content-type", b"application/json")],
    "client": ("127.0.0.1", 1),
    "server": ("127.0.0.1", 2),
}


def test_one_feed_and_one_send_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of 100 chunks takes 100 feeds and 100 sends."""
    counts = stream(tmp_path, 100, monkeypatch)
    assert (counts["feed"], counts["send"]) == (100, 100)


def test_no_task_and_no_timer_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 chunks take as many tasks and timers as 10 do."""
    few, many = stream(tmp_path, 10, monkeypatch), stream(tmp_path, 200, monkeypatch)
    assert (few["feed"], many["feed"]) == (10, 200)
    assert (few["task"], few["timer"]) == (many["task"], many["timer"])
