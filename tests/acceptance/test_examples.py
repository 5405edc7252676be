"""The programs in example_app/, run as their README says, in front of a provider of our own."""

import asyncio
import json
import os
import re
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from arbstr_asgi.cli.mock.provider import MockProvider
from arbstr_asgi.cli.server import serving
from tests.support.databases import fresh_database, run_sql

FOLDER = Path(__file__).resolve().parents[2] / "example_app"
START_SECONDS = 20.0
STOP_SECONDS = 10.0
MESSAGES = [{"role": "user", "content": "What did that cost?"}]
PLAIN = {"model": "mock-1", "messages": MESSAGES}
STREAM = {"model": "mock-1", "messages": MESSAGES, "stream": True}
COLUMNS = ("end_user", "streaming", "input_tokens", "output_tokens", "end_reason")
IN, OUT = 7, 17  # what the mock provider counts
_PORT = re.compile(rb"unning on http://127\.0\.0\.1:(\d+)")


@asynccontextmanager
async def running(database: Path, upstream: str, *command: str, **more: str) -> AsyncIterator[httpx.AsyncClient]:
    """Run an example on a free port, with a client for it; afterwards SIGTERM must end it."""
    environ = {
        **os.environ,
        "UPSTREAM_URL": f"{upstream}/v1",
        "DATABASE_URL": f"sqlite+aiosqlite:///{database}",
        **more,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *command, cwd=FOLDER, env=environ, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(START_SECONDS):
            port = await listening_at(process)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            yield client
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(STOP_SECONDS):
            _, said = await process.communicate()
        assert process.returncode in (0, -signal.SIGTERM)  # uvicorn raises the signal again at its end
        assert b"Traceback" not in said, said.decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def listening_at(process: asyncio.subprocess.Process) -> int:
    """The port that a server says it has taken."""
    assert process.stderr is not None
    said = b""
    while line := await process.stderr.readline():
        said += line
        if found := _PORT.search(line):
            return int(found[1])
    raise AssertionError(said.decode())


async def same(client: httpx.AsyncClient, path: str, direct: str, headers: dict[str, str]) -> None:
    """A streaming and a plain call get what they would have got from the provider itself."""
    for asked in (STREAM, PLAIN):
        through = await client.post(path, json=asked, headers=headers)
        assert through.status_code == 200, through.text
        async with httpx.AsyncClient(trust_env=False) as other:
            assert through.content == (await other.post(f"{direct}/v1/chat/completions", json=asked)).content


def rows(database: Path) -> list[tuple[Any, ...]]:
    """The ledger, oldest row first."""
    connection = sqlite3.connect(database)
    try:
        return connection.execute(f"SELECT {', '.join(COLUMNS)} FROM requests ORDER BY id").fetchall()
    finally:
        connection.close()


def bearer(token: str) -> dict[str, str]:
    """The header that says who calls."""
    return {"authorization": f"Bearer {token}"}


async def fastapi_app(database: Path) -> None:
    """Let two users spend, look at their pages, and be refused without a login and without a plan."""
    provider = MockProvider()
    async with serving(provider.app) as upstream:
        command = ("uvicorn", "--port", "0", "fastapi_app:app")
        async with running(database, upstream, *command) as client:
            await same(client, "/v1/chat/completions", upstream, bearer("alice-token"))
            await same(client, "/my/chat", upstream, bearer("bob-token"))
            seen = len(provider.received)
            for path in ("/v1/chat/completions", "/my/chat"):
                assert (await client.post(path, json=PLAIN)).status_code == 401
                assert (await client.post(path, json=PLAIN, headers=bearer("carol-token"))).status_code == 403
            assert len(provider.received) == seen
            assert (await client.get("/my/spend")).status_code == 401
            for name, calls in (("alice", 2), ("bob", 2), ("carol", 0)):
                await spent(client, bearer(f"{name}-token"), calls)


async def spent(client: httpx.AsyncClient, headers: dict[str, str], calls: int) -> None:
    """The user's page shows these calls, a moment after the last has ended."""
    want = {"model": "mock-1", "calls": calls, "input_tokens": calls * IN, "output_tokens": calls * OUT}
    want["cost_sats"] = calls * (IN * 0.01 + OUT * 0.03 + 1)
    for attempt in range(50):
        page = (await client.get("/my/spend", headers=headers)).json()
        page = [{**line, "cost_sats": round(line["cost_sats"], 9)} for line in page]
        if page == ([want] if calls else []):
            return
        await asyncio.sleep(0.02 * (attempt > 0))
    raise AssertionError(page)


def test_fastapi_app(tmp_path: Path) -> None:
    """Each user of the FastAPI app sees what they spent, by the middleware's path and by the app's own."""
    database = tmp_path / "ledger.db"
    asyncio.run(fastapi_app(database))
    assert rows(database) == [
        (name, streaming, IN, OUT, "completed") for name in ("alice", "bob") for streaming in (1, 0)
    ]


def test_starlette_mount(tmp_path: Path) -> None:
    """The mounted gateway knows its callers by their tokens, and its rows outlive hypercorn."""
    database = tmp_path / "ledger.db"

    async def main() -> None:
        path = "/llm/v1/chat/completions"
        command = ("hypercorn", "--bind", "127.0.0.1:0", "starlette_mount:app")
        async with serving(MockProvider().app) as upstream, running(database, upstream, *command) as client:
            assert "/llm/v1/chat/completions" in (await client.get("/")).text
            assert (await client.get("/llm/readyz")).json()["status"] == "ok"
            await same(client, path, upstream, bearer("bob-token"))
            for headers in ({}, bearer("guessed")):
                refused = await client.post(path, json=PLAIN, headers=headers)
                assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")

    asyncio.run(main())
    assert rows(database) == [("bob", streaming, IN, OUT, "completed") for streaming in (1, 0)]


def test_django_project(tmp_path: Path) -> None:
    """Whoever has a session of Django's may chat and is the end user; nobody else."""
    database = tmp_path / "ledger.db"

    async def main() -> None:
        path = "/v1/chat/completions"
        command = ("uvicorn", "--port", "0", "django_project.asgi:application")
        async with serving(MockProvider().app) as upstream, running(database, upstream, *command) as client:
            refused = await client.post(path, json=PLAIN)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "no_session")
            wrong = await client.post("/login", data={"user": "alice", "password": "guessed"})
            assert (wrong.status_code, (await client.get("/")).json()) == (403, {"user": None})
            await client.post("/login", data={"user": "alice", "password": "wonderland"})
            assert (await client.get("/")).json() == {"user": "alice"}
            await same(client, path, upstream, {})

    asyncio.run(main())
    assert rows(database) == [("alice", streaming, IN, OUT, "completed") for streaming in (1, 0)]


@pytest.mark.parametrize(
    ("server", "program"),
    [("uvicorn", "litestar_app:app"), ("hypercorn", "litestar_app:app"), ("hypercorn", "quart_app:app")],
)
def test_around_other_frameworks(server: str, program: str, tmp_path: Path) -> None:
    """Litestar and Quart keep their pages and their lifespan, and have a ledger."""
    database = tmp_path / "ledger.db"
    port = ("--port", "0") if server == "uvicorn" else ("--bind", "127.0.0.1:0")

    async def main() -> None:
        path = "/v1/chat/completions"
        async with (
            serving(MockProvider().app) as upstream,
            running(database, upstream, server, *port, program) as client,
        ):
            assert path in (await client.get("/")).text
            await same(client, path, upstream, bearer("bob-token"))
            assert (await client.post(path, json=PLAIN, headers=bearer("guessed"))).status_code == 401

    asyncio.run(main())
    assert rows(database) == [("bob", streaming, IN, OUT, "completed") for streaming in (1, 0)]


@pytest.mark.parametrize(
    ("program", "token"), [("fastapi_postgres:app", "t"), ("fastapi_sqlalchemy:app", "alice-token")]
)
def test_in_the_apps_own_postgresql(program: str, token: str, tmp_path: Path) -> None:
    """The rows are in the app's database, beside its own tables, and cost what the rates in USD come to."""
    model = "gpt-4o-mini"

    async def main(url: str) -> None:
        async with serving(MockProvider().app) as upstream:
            environ = {
                "DATABASE_URL": url.replace("postgresql://", "postgresql+asyncpg://"),
                "OPENAI_BASE_URL": f"{upstream}/v1",
                "OPENAI_API_KEY": "sk-none",
                "ALICE_TOKEN": "t",
            }
            async with running(tmp_path / "none", upstream, "uvicorn", "--port", "0", program, **environ) as client:
                asked = {**PLAIN, "model": model}
                assert (await client.post("/v1/chat/completions", json=asked)).status_code == 401
                reply = await client.post("/v1/chat/completions", json=asked, headers=bearer(token))
                assert reply.json()["usage"]["completion_tokens"] == OUT
                if "sqlalchemy" in program:
                    await shown(client, token)

    with fresh_database("postgresql", tmp_path) as url:
        asyncio.run(main(url))
        cost = 1_500 * (IN * Decimal("0.15") + OUT * Decimal("0.60")) / 1_000_000
        asked = "SELECT end_user, model, input_tokens, output_tokens, cost_sats FROM arbstr_requests"
        assert run_sql(url, asked) == [("alice", model, IN, OUT, cost)]


async def shown(client: httpx.AsyncClient, token: str) -> None:
    """The page of the teams has the call, a moment after it has ended."""
    for attempt in range(50):
        page = (await client.get("/spend", headers=bearer(token))).json()
        if page and page[0]["output_tokens"] is not None:
            assert [(line["team"], line["calls"], int(line["output_tokens"])) for line in page] == [
                ("research", 1, OUT)
            ]
            return
        await asyncio.sleep(0.02 * (attempt > 0))
    raise AssertionError(page)


def test_readme_names_each_program() -> None:
    """The README's table of contents is what is there, and its calls are JSON."""
    text = (FOLDER / "README.md").read_text("utf-8")
    for path in FOLDER.iterdir():
        if path.suffix == ".py" or (path / "__init__.py").exists():
            assert f"`{path.name}{'/' * path.is_dir()}`" in text
    bodies = [json.loads(body) for body in re.findall(r"--json '([^']*)'", text)]
    assert len(bodies) == 4
    assert all(body["model"] and body["messages"] for body in bodies)
