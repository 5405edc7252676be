"""The official OpenAI client gets equal objects from the provider itself and through every home."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from arbstr_asgi.cli.server import serving
from tests.support.fake_provider import JSON_TYPE, RESPONSE_MODEL, SCRIPTS, SSE_TYPE, USAGE, Line, event, provider
from tests.support.host_apps import HOMES, Home
from tests.support.servers import Row, configured, until_drains

MESSAGES: Any = [{"role": "user", "content": "Wie spät ist es? 🕰"}]
DETAILED = {
    **USAGE,
    "prompt_tokens_details": {"cached_tokens": 3, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 1, "audio_tokens": 0},
}
UNSAID = object()
OPTIONS: list[Any] = [UNSAID, {"include_usage": True}, {"include_usage": False}, {"include_obfuscation": True}]
Told = list[dict[str, Any]]


async def rich(line: Line) -> None:
    """What a reply can have: a role, text beyond ASCII, a tool call in parts, log probabilities, a service tier."""
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "clock", "arguments": ""}}
    common = {"id": "chatcmpl-2", "created": 1_700_000_000, "model": RESPONSE_MODEL, "service_tier": "default"}
    if not line.stream:
        message = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [{**call, "index": 0}]}
        choices = [{"index": 0, "message": message, "logprobs": None, "finish_reason": "tool_calls"}]
        body = {**common, "object": "chat.completion", "choices": choices, "usage": DETAILED}
        await line.whole(json.dumps(body, ensure_ascii=False).encode(), JSON_TYPE)
        return
    deltas: list[dict[str, Any]] = [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": 'Es ist "usage":null 🕰'},
        {"content": "\u2028spät"},
        {"tool_calls": [call]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"zone":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"CET"}'}}]},
    ]
    null = {"usage": None} if line.usage else {}
    await line.head(SSE_TYPE)
    await line.chunk(b": keep-alive\n\n")
    for number, delta in enumerate([*deltas, {}]):
        finish = "tool_calls" if number == len(deltas) else None
        choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
        data = event({**common, "object": "chat.completion.chunk", "choices": choices, **null, "obfuscation": "x" * 9})
        half = len(data) // 2
        await line.chunk(data[:half])
        await line.chunk(data[half:])
    if line.usage:
        await line.chunk(event({**common, "object": "chat.completion.chunk", "choices": [], "usage": DETAILED}))
    await line.chunk(b"data: [DONE]\n\n")
    await line.send(b"0\r\n\r\n")


def parameters(model: str, *, streaming: bool, options: Any) -> dict[str, Any]:
    """The arguments of a call."""
    given: dict[str, Any] = {"model": model, "messages": MESSAGES, "stream": streaming}
    return given if options is UNSAID else {**given, "stream_options": options}


def sync_call(base_url: str, given: dict[str, Any]) -> Told:
    """What the client makes of a call: its objects, as far as the reply has set their fields."""
    with openai.OpenAI(base_url=base_url, api_key="sk-host", max_retries=0) as client:
        return sync_told(client, given)


def sync_told(client: openai.OpenAI, given: dict[str, Any]) -> Told:
    """The same with a client that is there."""
    reply: Any = client.chat.completions.create(**given)
    if not given["stream"]:
        return [reply.model_dump(exclude_unset=True)]
    return [item.model_dump(exclude_unset=True) for item in reply]


async def async_told(client: openai.AsyncOpenAI, given: dict[str, Any]) -> Told:
    """The same with the asynchronous client."""
    reply: Any = await client.chat.completions.create(**given)
    if not given["stream"]:
        return [reply.model_dump(exclude_unset=True)]
    return [item.model_dump(exclude_unset=True) async for item in reply]


class Clients:
    """Both clients."""

    def __init__(self, sync: openai.OpenAI, asynchronous: openai.AsyncOpenAI) -> None:
        self._sync = sync
        self._async = asynchronous

    async def told(self, base_url: str, given: dict[str, Any]) -> list[Told]:
        """What they make of a call."""
        sync, asynchronous = self._sync.with_options(base_url=base_url), self._async.with_options(base_url=base_url)
        return [await asyncio.to_thread(sync_told, sync, given), await async_told(asynchronous, given)]


@asynccontextmanager
async def both_clients() -> AsyncIterator[Clients]:
    """Both clients, open."""
    options: Any = {"base_url": "http://nowhere.invalid", "api_key": "sk-host", "max_retries": 0}
    with openai.OpenAI(**options) as sync:
        async with openai.AsyncOpenAI(**options) as asynchronous:
            yield Clients(sync, asynchronous)


async def rows_of(home: Home, count: int) -> list[Row]:
    """All rows, once they are finished."""
    for _ in range(500):
        await home.ledger.flush()
        rows = await home.ledger.rows()
        if len(rows) == count and all(row["end_reason"] != "in_flight" for row in rows):
            return rows
        await asyncio.sleep(0.01)
    raise AssertionError("the rows have not come")


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The script of these tests; and nothing of a proxy in the environment comes between."""
    monkeypatch.setitem(SCRIPTS, "rich", rich)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize("name", HOMES)
def test_equal_objects(name: str, tmp_path: Path) -> None:
    """Streaming or not, whatever it says about usage, either client gets what it gets directly; and all is counted."""

    async def main() -> None:
        async with provider() as upstream:
            home = HOMES[name](configured(tmp_path, upstream.url))
            async with serving(home.app) as url, both_clients() as clients:
                base_url = url + home.path.removesuffix("/chat/completions")
                calls = [parameters("rich", streaming=True, options=options) for options in OPTIONS]
                calls.append(parameters("rich", streaming=False, options=UNSAID))
                for given in calls:
                    direct = await clients.told(upstream.url, given)
                    assert direct[0] == direct[1]
                    assert len(direct[0]) >= 7 or not given["stream"]
                    assert await clients.told(base_url, given) == direct
                rows = await rows_of(home, 2 * len(calls))
        rows.reverse()
        sources = ["provider", "provider", "none", "provider", "provider"]
        assert [row["usage_source"] for row in rows] == [source for source in sources for _ in range(2)]
        for row in rows:
            counted = row["usage_source"] == "provider"
            counts = (row["input_tokens"], row["output_tokens"], row["cached_tokens"], row["reasoning_tokens"])
            assert counts == ((7, 2, 3, 1) if counted else (None,) * 4)
            assert (row["end_reason"], row["finish_reason"]) == ("completed", "tool_calls")
            assert (row["service_tier"], row["response_model"]) == ("default", RESPONSE_MODEL)

    asyncio.run(main())


def failure(call: Callable[[], Any]) -> tuple[type[BaseException], Any, Any]:
    """The client's exception, and what it says."""
    with pytest.raises(openai.APIError) as caught:
        call()
    error = caught.value
    return type(error), getattr(error, "status_code", None), error.body


@pytest.mark.parametrize("streaming", [True, False], ids=["stream", "plain"])
@pytest.mark.parametrize("status", [400, 404, 429, 500])
def test_equal_errors(status: int, streaming: bool, tmp_path: Path) -> None:
    """A provider's error is the very exception that the client raises directly."""

    async def main() -> None:
        async with provider() as upstream:
            home = HOMES["sub_app"](configured(tmp_path, upstream.url))
            async with serving(home.app) as url:
                given = parameters(f"status:{status}", streaming=streaming, options=UNSAID)
                direct, through = [
                    await asyncio.to_thread(failure, lambda base=base: sync_call(base, given))  # type: ignore[misc]
                    for base in (upstream.url, f"{url}/v1")
                ]
                assert direct == through
                assert direct[1] == status

    asyncio.run(main())


@pytest.mark.parametrize("model", ["closes_chunked", "resets_mid_event", "error_event"])
def test_broken_stream_raises(model: str, tmp_path: Path) -> None:
    """A stream that breaks off is an exception for the client, never a reply that looks whole."""

    async def main() -> None:
        async with provider() as upstream:
            home = HOMES["sub_app"](configured(tmp_path, upstream.url))
            async with serving(home.app) as url:
                given = parameters(model, streaming=True, options=UNSAID)
                kind, _, body = await asyncio.to_thread(failure, lambda: sync_call(f"{url}/v1", given))
                assert kind is openai.APIError
                assert body["code"] == ("overloaded" if model == "error_event" else "upstream_disconnected")
                (row,) = await rows_of(home, 1)
                assert (row["end_reason"], row["success"]) == ("upstream_error", False)

    asyncio.run(main())


def test_our_key_refused_is_not_the_clients_401(tmp_path: Path) -> None:
    """A refused key of ours is no AuthenticationError for the client, which would ask its user for another key."""

    async def main() -> None:
        async with provider() as upstream:
            home = HOMES["sub_app"](configured(tmp_path, upstream.url, {"api_key": "sk-ours"}))
            async with serving(home.app) as url:
                given = parameters("refuses_key", streaming=True, options=UNSAID)
                kind, status, body = await asyncio.to_thread(failure, lambda: sync_call(f"{url}/v1", given))
                assert kind is openai.InternalServerError
                assert (status, body["type"]) == (502, "provider_authentication_error")

    asyncio.run(main())


def test_leaving_the_iteration(tmp_path: Path) -> None:
    """A client that closes its stream half-way has its row in full."""

    async def main() -> None:
        async with provider() as upstream:
            home = HOMES["sub_app"](configured(tmp_path, upstream.url))
            async with (
                serving(home.app) as url,
                openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk", max_retries=0) as client,
            ):
                reply: Any = await client.chat.completions.create(model="gated", messages=MESSAGES, stream=True)
                async for item in reply:
                    assert item.choices[0].delta.content == "Hello"
                    break
                await reply.close()
                await until_drains(url, 1)
                upstream.gate.set()
                (row,) = await rows_of(home, 1)
        assert (row["end_reason"], row["output_tokens"]) == ("client_disconnected", 2)

    asyncio.run(main())
