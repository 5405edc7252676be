"""What is imported late, so that an import of the package is cheap, is imported when a gateway starts."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from tests.support.asgi_client import WAYS
from tests.support.databases import migrated_file
from tests.support.fake_provider import provider

ROOT = Path(__file__).parents[3]
CALLS = """
import asyncio, json, sys
from asgi_lifespan import LifespanManager
from arbstr_asgi import Arbstr, ArbstrMiddleware, Config, DatabaseConfig, Provider

async def call(app, body):
    messages = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        messages.append(message)

    path, headers = "/v1/chat/completions", [(b"content-type", b"application/json")]
    await app({"type": "http", "method": "POST", "path": path, "headers": headers}, receive, send)
    assert messages[0]["status"] == 200, messages

async def host(scope, receive, send):
    raise NotImplementedError

async def main(way, url, file):
    config = Config(providers=[Provider(name="p", url=url)], database=DatabaseConfig(url="sqlite:///" + file))
    app = Arbstr(config) if way == "sub-app" else ArbstrMiddleware(host, config)
    async with LifespanManager(app):
        before = {*sys.modules}
        await call(app, b'{"model":"good","messages":[]}')
        await call(app, b'{"model":"good","messages":[],"stream":true}')
        await app.ledger.flush()
        print(json.dumps([*{*sys.modules} - before]))

asyncio.run(main(*sys.argv[1:]))
"""
CERTIFICATES = {"certifi", "certifi.core"}  # a file's name, for the first connection


async def imported_by_calls(way: str, folder: Path) -> set[str]:
    """The modules that a plain and a streaming call import in a process of their own, whose gateway has started."""
    async with provider() as upstream:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", CALLS, way, upstream.url, migrated_file(folder / "arbstr.db")),
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await process.communicate()
    assert process.returncode == 0
    return set(json.loads(said))


@pytest.mark.parametrize("way", WAYS)
def test_first_calls_import_nothing(way: str, tmp_path: Path) -> None:
    """What a call needs has been imported when the gateway has started, and costs its first caller no time."""
    assert asyncio.run(imported_by_calls(way, tmp_path)) <= CERTIFICATES
