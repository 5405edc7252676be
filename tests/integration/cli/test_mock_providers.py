"""The mock providers: what they can be told, and what the ledger then says of it."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from arbstr_asgi import Arbstr
from arbstr_asgi.cli.mock import provider as mock
from arbstr_asgi.cli.mock import server as mocks
from arbstr_asgi.cli.mock.directives import MEANINGS, WORDS, UnknownDirective, directives, status
from arbstr_asgi.cli.mock.provider import MockProvider
from arbstr_asgi.cli.mock.server import MockProviders, run_mock_providers
from arbstr_asgi.cli.server import serving
from tests.support.raw_http_client import Wire, ask, eventually
from tests.support.servers import Gateway, Row, no_task_left

CHEAP, DEAR = "mock-cheap", "mock-expensive"
BOTH_HAVE, CHEAP_HAS = "gpt-4o", "gpt-4o-mini"
ROOT = Path(__file__).resolve().parents[3]


def said(text: Any, **facts: Any) -> dict[str, Any]:
    """A request with one message."""
    return {"model": BOTH_HAVE, "messages": [{"role": "user", "content": text}], **facts}


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[tuple[Gateway, MockProviders]]:
    """What `arbstr serve --mock` runs, in this process."""
    async with run_mock_providers(folder / "mock.db") as there:
        arbstr = Arbstr(there.config)
        async with serving(arbstr) as url:
            yield Gateway(arbstr, url), there


@pytest.mark.parametrize(
    ("text", "cheap", "dear"),
    [
        ("hello", set(), set()),
        ("[mock: stall]", {"stall"}, {"stall"}),
        ("before [mock-cheap: 503] behind", {"503"}, set()),
        ("[mock-expensive:cut,  slow no-usage]", set(), {"cut", "slow", "no-usage"}),
        ("[mock: slow][mock-cheap: cut]", {"slow", "cut"}, {"slow"}),
        ("[mocking: bird] [mock stall] mock: stall [ mock: stall]", None, None),
        ("[mock stall] mock: stall, [x: y] [ mock: stall]", set(), set()),
        ([{"type": "text", "text": "[mock: slow]"}, {"type": "image_url"}, 1], {"slow"}, {"slow"}),
        ("[mock: stal]", None, None),
        ("[mock: ]", None, None),
        ("[mock: 200]", None, None),
        ("[mock: 400-599]", None, None),
        ("[mock-chaep: 503]", None, None),
        ("[mock: SLOW]", None, None),
        ("[mock: \ud83d]", None, None),
        ("[mock:" * 50_000, set(), set()),
        (None, set(), set()),
        ({"text": "[mock: slow]"}, set(), set()),
    ],
)
def test_directives(text: Any, cheap: set[str] | None, dear: set[str] | None) -> None:
    """The words in brackets are for the one that is named or for both; what is not understood is refused by both."""
    for name, expected in ((CHEAP, cheap), (DEAR, dear)):
        if expected is None:
            with pytest.raises(UnknownDirective) as caught:
                directives(said(text)["messages"], name)
            assert all(word in str(caught.value) for word in (*MEANINGS, CHEAP, DEAR))
        else:
            assert directives(said(text)["messages"], name) == expected


def test_directives_are_in_the_last_user_message() -> None:
    """A conversation goes on: what an earlier message has said is done."""
    messages = [*said("[mock: 503]")["messages"], {"role": "user", "content": "and now?"}, {"role": "assistant"}, 1]
    assert directives(messages, CHEAP) == set()
    assert all(directives(odd, CHEAP) == set() for odd in (None, 1, {}, "[mock: 503]"))


def test_status() -> None:
    """The status that is told, the highest of several."""
    assert [status(frozenset(told)) for told in ((), ("slow",), ("503", "slow"), ("429", "503"))] == [
        None,
        None,
        503,
        503,
    ]


@pytest.mark.parametrize("stream", [True, False])
def test_the_cheap_one_answers(stream: bool, tmp_path: Path) -> None:
    """Untold, the cheaper one answers, streaming or not, and costs what its rates say; the policy `code` is there."""

    async def main() -> None:
        async with running(tmp_path) as (gateway, there):
            got = await ask(gateway.url, said("please implement it", stream=stream))
            assert (got.status, got.clean, got.headers["x-arbstr-provider"]) == (200, True, CHEAP)
            assert b"nobody " in got.body
            assert (b"usage" in got.body) != stream
            row = await gateway.row()
            assert (row["provider"], row["policy"], row["attempts"]) == (CHEAP, "code", 1)
            assert (row["input_tokens"], row["output_tokens"]) == (6, 17)
            assert row["cost_sats"] == Decimal(6 * 5_000 + 17 * 15_000) / 1_000_000
            assert there.expensive.received == []
            other = await ask(gateway.url, said("x", model="mock-1"))
            assert (other.status, other.json["error"]["code"]) == (404, "model_not_found")

    asyncio.run(main())


# Told, the reply's status, whether its end is clean for a stream and for a plain one, and the row.
ALONE: list[tuple[str, int, bool, dict[str, Any]]] = [
    ("503", 503, True, {"end_reason": "completed", "success": False, "error_status": 503}),
    ("418", 418, True, {"end_reason": "completed", "success": False, "error_status": 418}),
    ("reset", 502, True, {"end_reason": "upstream_error", "error_message": "upstream_error: upstream_disconnected"}),
    ("stall", 504, True, {"end_reason": "timeout", "error_status": 504}),
    ("error-event", 200, True, {"end_reason": "upstream_error", "success": False, "output_tokens": None}),
    ("late-error", 200, True, {"end_reason": "upstream_error", "success": False, "output_tokens": None}),
    ("no-usage", 200, True, {"end_reason": "completed", "usage_source": "none", "cost_sats": None}),
    ("usage-everywhere", 200, True, {"end_reason": "completed", "output_tokens": 17}),
    ("no-done", 200, True, {"end_reason": "completed", "output_tokens": 17}),
    ("comments", 200, True, {"end_reason": "completed", "output_tokens": 17}),
    ("slow", 200, True, {"end_reason": "completed", "output_tokens": 17}),
    ("hang", 200, False, {"end_reason": "timeout", "success": False, "output_tokens": None}),
    ("cut", 200, False, {"end_reason": "upstream_error", "success": False, "output_tokens": None}),
]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
@pytest.mark.parametrize(("word", "code", "whole", "facts"), ALONE, ids=[row[0] for row in ALONE])
def test_directive_is_followed(
    word: str,
    code: int,
    whole: bool,
    facts: dict[str, Any],
    stream: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each thing that they can be told reaches the client as what it is, and the row says what is true of it."""
    monkeypatch.setattr(mocks, "PROVIDER_TIMEOUT", 0.5)
    monkeypatch.setattr(mock, "SECONDS_PER_SLOW_WORD", 0.02)

    async def main() -> tuple[Wire, Row]:
        async with running(tmp_path) as (gateway, _):
            got = await ask(gateway.url, said(f"hi [mock: {word}]", model=CHEAP_HAS, stream=stream))
            return got, await gateway.row()

    got, row = asyncio.run(main())
    assert got.status == code
    assert got.clean is (whole or stream)  # a stream that breaks off has an event of its own for that
    assert {name: row[name] for name in facts} == facts
    assert (row["provider"], row["attempts"], row["streaming"]) == (CHEAP, 1, stream)
    if stream and code == 200:
        assert (b": mock\n\n" in got.body) == (word == "comments")
        assert (b"[DONE]" in got.body) == (word not in ("no-done", "late-error", "error-event", "hang", "cut"))
        assert (b'"usage":{' in got.body) == (word == "usage-everywhere")


def test_every_word_is_tried() -> None:
    """The test above leaves no word out, and the page and the example explain each of them."""
    assert {row[0] for row in ALONE} - {"503", "418"} == set(WORDS)
    text = (ROOT / "docs" / "start" / "mock.md").read_text("utf-8")
    assert all(f"`{word}`" in text for word in MEANINGS)


def test_words_add_up(tmp_path: Path) -> None:
    """A stream that is cut after it has said what it used so far leaves that, as a part, in the row."""

    async def main() -> Row:
        async with running(tmp_path) as (gateway, _):
            await ask(gateway.url, said("[mock: usage-everywhere cut]", model=CHEAP_HAS, stream=True))
            return await gateway.row()

    row = asyncio.run(main())
    assert (row["usage_source"], row["end_reason"]) == ("provider_partial", "upstream_error")
    assert 0 < row["output_tokens"] < 17


@pytest.mark.parametrize(("word", "stream"), [("503", True), ("503", False), ("429", False), ("error-event", True)])
def test_fails_over(word: str, stream: bool, tmp_path: Path) -> None:
    """What the cheap one is told to fail, the other answers; the attempts say so."""

    async def main() -> None:
        async with running(tmp_path) as (gateway, there):
            got = await ask(gateway.url, said(f"hi [mock-cheap: {word}]", stream=stream))
            assert (got.status, got.clean, got.headers["x-arbstr-provider"]) == (200, True, DEAR)
            assert got.headers["x-arbstr-retries"] == "1/mock-cheap"
            row = await gateway.row()
            assert (row["provider"], row["attempts"], row["output_tokens"]) == (DEAR, 2, 17)
            attempts = await gateway.arbstr.ledger.attempts(row["correlation_id"])
            assert [attempt["provider"] for attempt in attempts] == [CHEAP, DEAR]
            assert len(there.cheap.received) == len(there.expensive.received) == 1

    asyncio.run(main())


@pytest.mark.parametrize("text", ["[mock: nonsense]", "[mock-expensive: nonsense]", "[mock-x: 503]"])
def test_not_understood(text: str, tmp_path: Path) -> None:
    """The client is told which words there are, and nobody else is asked."""

    async def main() -> None:
        async with running(tmp_path) as (gateway, there):
            got = await ask(gateway.url, said(text))
            assert (got.status, got.headers["x-arbstr-provider"]) == (400, CHEAP)
            assert all(word in got.json["error"]["message"] for word in MEANINGS)
            assert there.expensive.received == []

    asyncio.run(main())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b'{"model":"m","stream":true,"stream_options":[1]}',
        b'{"model":"m","x":' + b"1" * 5000 + b"}",
        b'{"model":"m","x":' + b"[" * 100_000,
        b'{"model":"m\xff"}',
    ],
)
def test_no_completion(body: bytes) -> None:
    """What is no chat completion is a 400 of the provider's."""

    async def main() -> None:
        async with serving(MockProvider().app) as url:
            got = await ask(url, body)
            assert (got.status, got.json["error"]["type"]) == (400, "invalid_request_error")
            odd = await ask(url, b'{"model":"\\ud83d\\u0000","messages":["\\ud83d",{"role":1}]}')
            assert (odd.status, odd.json["model"]) == (200, json.loads('"\\ud83d\\u0000"'))

    asyncio.run(main())


@pytest.mark.parametrize(("word", "stream"), [("stall", True), ("stall", False), ("hang", True), ("hang", False)])
def test_a_stall_ends_with_its_peer(word: str, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it would last, nothing of it is left when the peer has gone."""
    monkeypatch.setattr(mock, "STALL_SECONDS", 1000.0)

    provider, answering = MockProvider(CHEAP), 0

    async def counted(scope: Any, receive: Any, send: Any) -> None:
        nonlocal answering
        answering += scope["type"] == "http"
        try:
            await provider.app(scope, receive, send)
        finally:
            answering -= scope["type"] == "http"

    async def main() -> None:
        async with serving(counted) as url:
            wire = await Wire.open(url, said(f"[mock: {word}]", stream=stream))
            await eventually(lambda: answering == 1)
            if word == "hang":
                await wire.until(1)
            await asyncio.sleep(0.3)
            assert answering == 1
            wire.hang_up()
            await eventually(lambda: answering == 0)
        await no_task_left()

    asyncio.run(main())


def test_a_stall_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a stall comes the answer."""
    monkeypatch.setattr(mock, "STALL_SECONDS", 0.3)

    async def main() -> None:
        async with serving(MockProvider(CHEAP).app) as url:
            began = time.monotonic()
            assert (await ask(url, said("[mock: stall]"))).status == 200
            assert time.monotonic() - began >= 0.3

    asyncio.run(main())


def test_only_on_loopback(tmp_path: Path) -> None:
    """The providers listen where nobody else reaches them."""

    async def main() -> None:
        async with run_mock_providers(tmp_path / "mock.db") as there:
            for provider in there.config.providers:
                assert provider.url.startswith("http://127.0.0.1:")

    asyncio.run(main())
