"""A line for each finished call, and what `arbstr serve` logs at which level."""

import asyncio
import logging
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from arbstr_asgi import Config, DatabaseConfig, Logging
from tests.support.asgi_client import (
    PLAIN_REQUEST,
    STREAM_REQUEST,
    Call,
    Chunks,
    Provided,
    call,
    configured,
    rows,
    running,
)
from tests.support.fake_provider import provider
from tests.support.raw_http_client import ask
from tests.support.servers import spawned

RATES: dict[str, Any] = {"input_rate": 10_000, "output_rate": 30_000, "base_fee": 1}
ASKED = {"model": "good", "messages": [{"role": "user", "content": "a-prompt"}], "stream": True}
LINE = r"INFO arbstr_asgi\.requests: [0-9a-f-]{36} user=None model='good' provider='p' status=ok end=completed in=7 "
LINE += r"out=2 cost_sats=1\.13 ms=\d+\n"


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines of finished calls."""
    return [record.getMessage() for record in caplog.records if record.name == "arbstr_asgi.requests"]


def with_access_log(folder: Path, **facts: Any) -> Config:
    """A configuration that has each call told."""
    return configured(folder, {**RATES, "disconnect": "cancel"}, logging=Logging(log_requests=True), **facts)


@pytest.mark.parametrize("body", [PLAIN_REQUEST, STREAM_REQUEST], ids=["plain", "stream"])
@pytest.mark.parametrize("durability", ["relaxed", "strict"])
def test_line(durability: Any, body: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A finished call is one line, and one only, however durable its row is."""

    async def main() -> dict[str, Any]:
        database = DatabaseConfig(path=str(tmp_path / "ledger.db"), durability=durability)
        async with running("middleware", with_access_log(tmp_path, database=database), Provided()) as app:
            assert (await call(app, body)).status == 200
            [row] = await rows(app)
            return row

    caplog.set_level(logging.INFO, logger="arbstr_asgi.requests")
    row = asyncio.run(main())
    [line] = logged(caplog)
    assert line.startswith(f"{row['correlation_id']} user=None model='m' provider='p' status=ok end=completed in=7 ")
    assert re.search(r" out=2 cost_sats=1\.13 ms=\d+$", line)


def test_lines_of_failures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A refusal of the provider's and a client that leaves are told as they were."""
    never = asyncio.Event()

    async def main() -> None:
        provided = Provided()
        async with running("middleware", with_access_log(tmp_path), provided) as app:
            provided.answer = lambda request: _reply(429, Chunks(b"{}"))
            assert (await call(app, PLAIN_REQUEST)).status == 429
            provided.answer = lambda request: _reply(200, Chunks(b"data: {}\n\n", never), "text/event-stream")
            leaving = Call(app, STREAM_REQUEST)
            task = asyncio.create_task(leaving.run())
            await leaving.begun.wait()
            leaving.gone.set()
            await task
            await rows(app)

    caplog.set_level(logging.INFO, logger="arbstr_asgi.requests")
    asyncio.run(main())
    refused, left = logged(caplog)
    assert " status=429 end=completed in=None out=None cost_sats=None ms=" in refused
    assert " end=client_disconnected " in left


def _reply(status: int, chunks: Chunks, media_type: str = "application/json") -> Any:
    return httpx.Response(status, headers={"content-type": media_type}, stream=chunks)


def test_outside_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody can begin a line of the log, paint a terminal, or fill it."""

    async def main() -> None:
        async with running(
            "middleware", with_access_log(tmp_path), Provided(), identify=lambda scope: "\x1b[2J\r\nevil"
        ) as app:
            model = "m\\u001b[31m\\n2026 CRITICAL " + "x" * 200
            await call(app, b'{"model":"%b","messages":[]}' % model.encode())
            await rows(app)

    caplog.set_level(logging.INFO, logger="arbstr_asgi.requests")
    asyncio.run(main())
    [line] = logged(caplog)
    assert line.isprintable()
    assert r"user='\x1b[2J\r\nevil'" in line
    assert r"model='m\x1b[31m\n2026 CRITICAL " + "x" * 79 + "'" in line


def test_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Unless it is asked for there is no line, and nothing between a call and its row."""

    async def main() -> None:
        async with running("middleware", configured(tmp_path), Provided()) as app:
            await call(app, PLAIN_REQUEST)
            assert not app._gateway._deps.observers
            await rows(app)

    caplog.set_level(logging.INFO, logger="arbstr_asgi.requests")
    asyncio.run(main())
    assert logged(caplog) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_serve(workers: int, tmp_path: Path) -> None:
    """`arbstr serve` and its workers log each call as the configuration says, with neither prompt nor key."""

    async def main() -> str:
        key = '"literal-key-0123456789"'
        more = f'api_key = {key}\n[logging]\nlevel = "INFO"\nlog_requests = true\n'
        async with (
            provider() as upstream,
            spawned(tmp_path, "arbstr", upstream.url, workers=workers, more=more) as server,
        ):
            for _ in range(4):
                assert (await ask(server.url, ASKED)).status == 200
            assert await server.terminate(10) == 0
            return server.said()

    said = asyncio.run(main())
    assert len(re.findall(LINE, said)) == 4
    assert "a-prompt" not in said
    assert "literal-key" not in said
    assert said.count("WARNING arbstr_asgi: provider p: its key itself is in ") == 1
    assert said.count("arbstr.toml can be read by others; chmod 600 it") == 1


@pytest.mark.parametrize(("level", "info"), [("warn", False), ("trace", True)])
def test_serve_at_a_level(level: str, info: bool, tmp_path: Path) -> None:
    """A level hides what is below it, of hypercorn too."""

    async def main() -> str:
        more = f'[logging]\nlevel = "{level}"\nlog_requests = true\n'
        async with provider() as upstream, spawned(tmp_path, "arbstr", upstream.url, more=more) as server:
            assert (await ask(server.url, ASKED)).status == 200
            await server.terminate(10)
            return server.said()

    said = asyncio.run(main())
    assert ("INFO hypercorn.error: Running on" in said) is info
    assert (re.search(LINE, said) is not None) is info
    assert "can be read by others" in said


def test_levels_reach_the_loggers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `prepare` sets is the level of the package and of its server, and of nobody else."""
    from arbstr_asgi.cli.server import prepare

    for name in ("arbstr_asgi", "hypercorn.error"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.NOTSET)
    before = logging.getLogger().level
    prepare(logging.DEBUG)
    assert [logging.getLogger(name).level for name in ("arbstr_asgi", "hypercorn.error")] == [logging.DEBUG] * 2
    assert logging.getLogger().level == before
