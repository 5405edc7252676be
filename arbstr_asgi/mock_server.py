"""`arbstr serve --mock`: the gateway in front of the mock providers, in one process, for one's own client."""

import json
import tempfile
from pathlib import Path

import click

from arbstr_asgi.app import Arbstr
from arbstr_asgi.config.checks import check_listen
from arbstr_asgi.mocks import run_mock_providers
from arbstr_asgi.orders import CHEAP, MEANINGS
from arbstr_asgi.serve import run, serve_here

TRIED = {"model": "gpt-4o", "messages": [{"role": "user", "content": f"Hello! [{CHEAP}: 503]"}]}


def serve_mock(listen: str) -> None:
    """Serve until SIGTERM or SIGINT; the ledger is in a temporary folder that goes with the process.

    Raises ConfigError, and OSError when it can't listen.
    """
    check_listen(listen)
    run(_serve_mock(listen))


async def _serve_mock(listen: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "mock.db"
        async with run_mock_providers(database) as mocks:
            names = " and ".join(provider.name for provider in mocks.config.providers)
            click.echo(f"{names} behind http://{listen}/v1, no key; until this ends, the ledger: {database}")
            click.echo(_said(listen))
            await serve_here(Arbstr(mocks.config), listen, grace=1.0)


def _said(listen: str) -> str:
    return f"""
GET  /v1/stats, /v1/requests, /v1/models, /providers, /metrics, /health, /livez, /readyz
POST /v1/chat/completions, /v1/cost

A message tells the providers what to do, as in [mock: stall] or [{CHEAP}: slow no-usage]:
{", ".join(MEANINGS)}
One that fails three times in a row is not asked for 30 s; /health shows that.

curl -i http://{listen}/v1/chat/completions -H 'content-type: application/json' \\
     -d '{json.dumps(TRIED)}'
"""
