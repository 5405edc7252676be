"""Estimates of calls without usage: made behind the reply, marked as what they are, and nothing kept of the texts."""

import asyncio
import gc
import json
import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from arbstr_asgi import Arbstr, ArbstrMiddleware, ConfigError
from arbstr_asgi.database.records import LedgerEntry
from arbstr_asgi.gateway import estimator
from arbstr_asgi.gateway.estimator import MAX_STREAM_BYTES, Estimator
from arbstr_asgi.protocols.tokenizer import PIECE_CHARACTERS, Stopped, Tokenizer
from tests.integration.telemetry.test_prometheus import scrape
from tests.support.asgi_client import (
    EVENTS,
    JSON_TYPE,
    PLAIN,
    SSE_TYPE,
    START,
    USAGE,
    Call,
    Chunks,
    Provided,
    call,
    configured,
    rows,
    running,
)
from tests.support.raw_http_client import eventually

RATES: dict[str, Any] = {"input_rate": 10_000, "output_rate": 30_000, "base_fee": 1}
SAID = "The quick brown fox jumps over the lazy dog."
SAID_TOKENS = 10
MESSAGES = [{"role": "user", "content": SAID}]
GIVEN = SAID_TOKENS + 1 + 3 + 3  # the role, the message, the reply
REQUEST = json.dumps({"model": "m", "stream": True, "messages": MESSAGES}).encode()
PLAIN_REQUEST = json.dumps({"model": "m", "messages": MESSAGES}).encode()
STOP, DONE = EVENTS[1], EVENTS[3]


def delta(text: str) -> bytes:
    """An event that says this."""
    choice = json.dumps({"index": 0, "delta": {"content": text}, "finish_reason": None}).encode()
    return START + b'"choices":[' + choice + b"]}\n\n"


WORDS = [delta(word if not n else f" {word}") for n, word in enumerate(SAID.split())]


def streaming(*steps: Any, **headers: str) -> Callable[[httpx.Request], httpx.Response]:
    """A provider that answers with these chunks."""
    return lambda request: httpx.Response(200, headers={**SSE_TYPE, **headers}, stream=Chunks(*steps))


def plain(body: bytes, status: int = 200) -> Callable[[httpx.Request], httpx.Response]:
    """A provider that answers with this body."""
    return lambda request: httpx.Response(status, headers=JSON_TYPE, stream=Chunks(body))


async def settled(app: Any) -> list[dict[str, Any]]:
    """The rows, once all that is to be estimated has been."""
    await eventually(lambda: app._gateway._estimator.budget.size == 0)
    return await rows(app)


def ended(
    folder: Path, answer: Callable[[httpx.Request], httpx.Response], body: bytes = REQUEST, **facts: Any
) -> dict[str, Any]:
    """The row of one call, with its estimate if there is one."""

    async def main() -> dict[str, Any]:
        facts.setdefault("estimates", True)
        async with running("sub-app", configured(folder, RATES, **facts), Provided(answer)) as app:
            await call(app, body)
            (row,) = await settled(app)
            return row

    return asyncio.run(main())


def test_stream(tmp_path: Path) -> None:
    """A stream without usage gets the tokens of its deltas and of the request's messages, and what those cost."""
    row = ended(tmp_path, streaming(*WORDS, STOP, DONE))
    assert (row["usage_source"], row["input_tokens"], row["output_tokens"]) == ("estimated", GIVEN, SAID_TOKENS)
    assert row["cost_sats"] == 1 + Decimal(GIVEN * 10_000 + SAID_TOKENS * 30_000) / 1_000_000
    assert (row["revision"], row["end_reason"], row["success"], row["total_tokens"]) == (2, "completed", True, None)


def test_plain(tmp_path: Path) -> None:
    """A plain reply without usage does, too."""
    body = PLAIN.replace(b',"usage":' + USAGE, b"").replace(b'"Hi"', json.dumps(SAID).encode())
    row = ended(tmp_path, plain(body), PLAIN_REQUEST)
    assert (row["usage_source"], row["input_tokens"], row["output_tokens"]) == ("estimated", GIVEN, SAID_TOKENS)


def test_opted_out(tmp_path: Path) -> None:
    """A client that does not want to be told its usage is estimated."""
    body = REQUEST[:-1] + b',"stream_options":{"include_usage":false}}'
    row = ended(tmp_path, streaming(*WORDS, STOP, DONE), body)
    assert (row["usage_source"], row["output_tokens"]) == ("estimated", SAID_TOKENS)


@pytest.mark.parametrize("source", ["provider", "provider_partial"])
def test_said_by_the_provider(source: str, tmp_path: Path) -> None:
    """What a provider says itself stays, also where it did not say its last word."""
    usage = WORDS[0].replace(b"]}", b'],"usage":{"prompt_tokens":3,"completion_tokens":4}}')
    row = ended(tmp_path, streaming(usage, *((STOP, DONE) if source == "provider" else (httpx.ReadError("cut"),))))
    assert (row["usage_source"], row["input_tokens"], row["output_tokens"], row["revision"]) == (source, 3, 4, 1)


def test_cut_off(tmp_path: Path) -> None:
    """Of a reply that broke off, what went by is estimated, and its end stays what it was."""

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=SSE_TYPE, stream=Chunks(*WORDS[:4], httpx.ReadError("cut")))

    row = ended(tmp_path, answer)
    assert (row["usage_source"], row["output_tokens"], row["end_reason"]) == ("estimated", 4, "upstream_error")
    assert row["error_message"] == "upstream_error: upstream_disconnected"


def test_client_left(tmp_path: Path) -> None:
    """Of a stream whose client left, what went by is estimated."""

    async def main() -> dict[str, Any]:
        provider = {**RATES, "disconnect": "cancel"}
        answer = streaming(*WORDS[:3], asyncio.Event())
        async with running("sub-app", configured(tmp_path, provider, estimates=True), Provided(answer)) as app:
            one = Call(app, REQUEST)
            task = asyncio.create_task(one.run())
            await eventually(lambda: len(one.messages) >= 4)
            one.gone.set()
            await task
            (row,) = await settled(app)
            return row

    row = asyncio.run(main())
    assert (row["usage_source"], row["output_tokens"], row["end_reason"]) == ("estimated", 3, "client_disconnected")


def test_no_reply(tmp_path: Path) -> None:
    """Where there was no completion there is no estimate: an error, a page, no answer, an encoded reply."""
    folders = iter(range(10))

    def row(answer: Callable[[httpx.Request], httpx.Response]) -> dict[str, Any]:
        folder = tmp_path / str(next(folders))
        folder.mkdir()
        return ended(folder, answer)

    def unreachable(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no")

    found = [
        row(plain(b'{"error":{"message":"no"}}', 500)),
        row(plain(b"<p>no</p>")),
        row(plain(b'{"error":{"message":"no"}}')),
        row(unreachable),
        row(streaming(*WORDS, **{"content-encoding": "br"})),
    ]
    assert [(one["usage_source"], one["input_tokens"], one["revision"]) for one in found] == [("none", None, 1)] * 5


def test_input_unknown(tmp_path: Path) -> None:
    """An image in the request makes the input, and with it the cost, unknown; the output is estimated."""
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}]
    body = json.dumps({"model": "m", "stream": True, "messages": messages}).encode()
    row = ended(tmp_path, streaming(*WORDS, STOP, DONE), body)
    facts = ("usage_source", "input_tokens", "output_tokens", "cost_sats")
    assert [row[name] for name in facts] == ["estimated", None, SAID_TOKENS, None]


def test_long_stream(tmp_path: Path) -> None:
    """Of a stream that is longer than what is kept of it, the events tell the rest."""
    count = 5000
    assert len(WORDS[1]) * count > 5 * MAX_STREAM_BYTES
    row = ended(tmp_path, streaming(*([WORDS[1]] * count), STOP, DONE))
    assert row["output_tokens"] == pytest.approx(count, rel=0.01)


def test_strict(tmp_path: Path) -> None:
    """A row that was committed before its reply's end gets its estimate after that."""
    from arbstr_asgi import DatabaseConfig

    database = DatabaseConfig(path=str(tmp_path / "ledger.db"), durability="strict")
    row = ended(tmp_path, streaming(*WORDS, STOP, DONE), database=database)
    assert (row["usage_source"], row["output_tokens"], row["end_reason"]) == ("estimated", SAID_TOKENS, "completed")


def test_attempts_stay_unknown(tmp_path: Path) -> None:
    """The attempts say only what providers said, so that no sum over them has estimates in it."""

    async def main() -> list[dict[str, Any]]:
        answer = streaming(*WORDS, STOP, DONE)
        async with running("sub-app", configured(tmp_path, RATES, estimates=True), Provided(answer)) as app:
            await call(app, REQUEST)
            (row,) = await settled(app)
            found: list[dict[str, Any]] = await app.ledger.attempts(row["correlation_id"])
            return found

    (attempt,) = asyncio.run(main())
    facts = ("input_tokens", "output_tokens", "cost_sats", "maybe_billed")
    assert [attempt[name] for name in facts] == [None, None, None, True]


def test_metrics_keep_them_apart(tmp_path: Path) -> None:
    """Estimated tokens and sats have a label of their own, and a call is one call."""

    async def main() -> None:
        answer = streaming(*WORDS, STOP, DONE)
        async with running("sub-app", configured(tmp_path, RATES, estimates=True), Provided(answer)) as app:
            await call(app, REQUEST)
            await settled(app)
            found = await scrape(app)
            assert found.sum("arbstr_requests_total") == found.sum("arbstr_requests_total", usage_source="none") == 1
            estimated = {"usage_source": "estimated", "type": "output"}
            assert found.sum("arbstr_tokens_total", **estimated) == SAID_TOKENS
            sats = found.sum("arbstr_cost_sats_total", usage_source="estimated")
            assert found.sum("arbstr_cost_sats_total") == sats > 1

    asyncio.run(main())


def test_a_correction_wins(tmp_path: Path) -> None:
    """What an operator has corrected is not overwritten by an estimate that comes later."""

    async def main() -> dict[str, Any]:
        answer = streaming(*WORDS, STOP, DONE)
        async with running("sub-app", configured(tmp_path, RATES, estimates=True), Provided(answer)) as app:
            with slow_tokenizer(app) as go:
                done = await call(app, REQUEST)
                await app.ledger.update_usage(done.headers["x-arbstr-request-id"], 1, 2, Decimal(3))
                go.set()
                (row,) = await settled(app)
                return row

    row = asyncio.run(main())
    assert (row["input_tokens"], row["output_tokens"], row["cost_sats"]) == (1, 2, 3)


@contextmanager
def slow_tokenizer(app: Any) -> Iterator[threading.Event]:
    """The estimator counts only once the event is set."""
    go, count = threading.Event(), Estimator._count

    def waiting(self: Estimator, tokenizer: Any, text: str) -> int:
        while not go.wait(0.01):
            if self._stopped:
                raise Stopped
        return count(self, tokenizer, text)

    Estimator._count = waiting  # type: ignore[method-assign]
    try:
        yield go
    finally:
        Estimator._count = count  # type: ignore[method-assign]


def test_not_on_the_path(tmp_path: Path) -> None:
    """Replies end and other calls go on while nothing can be counted."""

    async def main() -> list[dict[str, Any]]:
        answer = streaming(*WORDS, STOP, DONE)
        async with running("sub-app", configured(tmp_path, RATES, estimates=True), Provided(answer)) as app:
            with slow_tokenizer(app) as go:
                for _ in range(5):
                    assert (await call(app, REQUEST)).ended
                assert {row["usage_source"] for row in await rows(app)} == {"none"}
                go.set()
                return await settled(app)

    assert [row["usage_source"] for row in asyncio.run(main())] == ["estimated"] * 5


def test_close_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What can't be counted in time stays without an estimate: the end waits no longer, and nothing is lost by it."""
    monkeypatch.setattr(Estimator.close, "__defaults__", (0.2,))

    async def main() -> float:
        config = configured(tmp_path, RATES, estimates=True)
        async with running("sub-app", config, Provided(streaming(*WORDS, STOP, DONE))) as app:
            with slow_tokenizer(app):
                await call(app, REQUEST)
                thread = app._gateway._estimator._thread
                begun = time.monotonic()
                await app._gateway.close()
                seconds = time.monotonic() - begun
                await eventually(lambda: not thread.is_alive())
        async with running("sub-app", configured(tmp_path, RATES), Provided()) as app:
            (row,) = await rows(app)
            assert (row["usage_source"], row["input_tokens"], row["end_reason"]) == ("none", None, "completed")
        return seconds

    with caplog.at_level(logging.WARNING):
        assert asyncio.run(main()) < 5
    assert not [record for record in caplog.records if "lost" in record.getMessage()]


def test_close_estimates_what_waits(tmp_path: Path) -> None:
    """What waits at the end is estimated before the ledger closes."""

    async def main() -> None:
        config = configured(tmp_path, RATES, estimates=True)
        async with running("sub-app", config, Provided(streaming(*WORDS, STOP, DONE))) as app:
            await call(app, REQUEST)
        async with running("sub-app", configured(tmp_path, RATES), Provided()) as app:
            (row,) = await rows(app)
            assert row["usage_source"] == "estimated"

    asyncio.run(main())
    assert not [thread for thread in threading.enumerate() if thread.name == "arbstr-estimates"]


CANARY = "canary-5e1"


def test_nothing_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts are in no row, file, log or repr, also where counting fails, and are gone when they are counted."""
    body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": CANARY}]}).encode()
    refs: list[weakref.ref[Any]] = []
    keep = Estimator.sample

    def kept(self: Estimator, request: bytes, *, streaming: bool) -> Any:
        found = keep(self, request, streaming=streaming)
        refs.append(weakref.ref(found))
        return found

    def failing(self: Estimator, tokenizer: Any, text: str) -> int:
        raise ValueError(text)

    monkeypatch.setattr(Estimator, "sample", kept)

    async def main() -> str:
        answer = streaming(delta(CANARY), STOP, DONE)
        async with running("sub-app", configured(tmp_path, RATES, estimates=True), Provided(answer)) as app:
            with slow_tokenizer(app) as go:
                await call(app, body)
                seen = "".join(repr(o) for o in gc.get_objects() if str(type(o).__module__).startswith("arbstr_asgi"))
                go.set()
                await settled(app)
            monkeypatch.setattr(Estimator, "_count", failing)
            await call(app, body)
            return seen + repr(await settled(app)) + (await scrape(app)).text

    with caplog.at_level(logging.DEBUG):
        seen = asyncio.run(main())
    monkeypatch.undo()
    assert "an estimate failed with ValueError" in caplog.text
    assert CANARY not in seen + "".join(record.getMessage() for record in caplog.records if record.name[:4] == "arbs")
    assert len(refs) == 2
    assert [ref() for ref in refs] == [None, None]
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes()


class Words:
    """A tokenizer without a vocabulary."""

    def count(self, text: str, stopped: Callable[[], bool]) -> int:
        """The words."""
        return len(text.split())


def entry() -> LedgerEntry:
    """A call that has ended without usage."""
    return LedgerEntry(correlation_id="c", timestamp=datetime.now(UTC), model="m", streaming=True, revision=1)


def test_queue_is_bounded(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """More calls than may wait stay without an estimate, and what was kept of them goes."""
    monkeypatch.setattr(estimator, "MAX_WAITING", 2)
    go, recorded = threading.Event(), []

    def load() -> Words:
        go.wait(10)
        return Words()

    one = Estimator(recorded.append, load)
    for _ in range(5):
        kept = one.sample(PLAIN_REQUEST, streaming=True)
        kept.add(WORDS[0])
        one.submit(kept, entry(), 1, lambda usage: None)
    assert one.budget.size == 2 * (len(PLAIN_REQUEST) + len(WORDS[0]))
    go.set()
    asyncio.run(one.close())
    assert [(found.output_tokens, found.revision) for found in recorded] == [(1, 2)] * 2
    assert caplog.text.count("more calls end without usage") == 1
    late = one.sample(PLAIN_REQUEST, streaming=True)
    late.add(WORDS[0])
    one.submit(late, entry(), 1, lambda usage: None)
    assert one.budget.size == 0


def test_can_not_load(caplog: pytest.LogCaptureFixture) -> None:
    """A tokenizer that can't be loaded means no estimates, which is said once; calls go on."""

    def load() -> Words:
        raise ImportError("canary")

    recorded: list[LedgerEntry] = []
    one = Estimator(recorded.append, load)
    kept = one.sample(PLAIN_REQUEST, streaming=True)
    kept.add(WORDS[0])
    one.submit(kept, entry(), 1, lambda usage: None)
    asyncio.run(one.close())
    assert (recorded, one.budget.size) == ([], 0)
    assert "the tokenizer can't be loaded (ImportError)" in caplog.text
    assert "canary" not in caplog.text


def test_off(tmp_path: Path) -> None:
    """Without the setting there is no thread, nothing is kept, and no row changes after its end."""
    before = {thread.name for thread in threading.enumerate()}

    async def main() -> dict[str, Any]:
        answer = streaming(*WORDS, STOP, DONE)
        async with running("sub-app", configured(tmp_path, RATES), Provided(answer)) as app:
            await call(app, REQUEST)
            assert app._gateway._estimator is None
            assert "arbstr-estimates" not in {thread.name for thread in threading.enumerate()} - before
            (row,) = await rows(app)
            return row

    assert asyncio.run(main())["usage_source"] == "none"


def test_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for estimates without the package is told what to install, at once."""
    monkeypatch.setitem(sys.modules, "bpe_openai", None)
    config = configured(tmp_path, estimates=True)
    for make in (lambda: Arbstr(config), lambda: ArbstrMiddleware(Arbstr(configured(tmp_path)), config)):
        with pytest.raises(ConfigError, match=r'^estimates: needs bpe-openai: pip install "arbstr-asgi\[estimate\]"$'):
            make()


def test_tokenizer() -> None:
    """Text of any length and kind is counted, in pieces, and may be stopped between them."""
    tokenizer = Tokenizer()

    def never() -> bool:
        return False

    assert tokenizer.count("", never) == 0
    assert tokenizer.count(SAID, never) == SAID_TOKENS
    assert tokenizer.count("<|endoftext|>\0\ud83d é 漢字", never) > 5
    long = f"{SAID} " * 10_000
    assert tokenizer.count(long, never) == pytest.approx(SAID_TOKENS * 10_000, rel=1 / 1000)
    with pytest.raises(Stopped):
        tokenizer.count("x" * (2 * PIECE_CHARACTERS), lambda: True)
