"""`arbstr serve --mock`: the gateway in front of two mock providers, in one process."""

import json
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import click

from arbstr_asgi.app import Arbstr
from arbstr_asgi.cli.mock.directives import CHEAP, EXPENSIVE, MEANINGS
from arbstr_asgi.cli.mock.provider import MockProvider
from arbstr_asgi.cli.server import run, serve_here, serving
from arbstr_asgi.config.config import Config
from arbstr_asgi.config.policies import Policies, Rule
from arbstr_asgi.config.provider import Provider
from arbstr_asgi.config.settings import DatabaseConfig, Server
from arbstr_asgi.config.validation import check_listen

PROVIDER_TIMEOUT = 5.0  # short, so that a `stall` fails over within seconds
CODE = Rule(
    name="code",
    allowed_models=("gpt-4o", "claude-3.5-sonnet"),
    max_sats_per_1m_output=50_000,
    keywords=("code", "function", "implement"),
)
EXAMPLE_REQUEST = {"model": "gpt-4o", "messages": [{"role": "user", "content": f"Hello! [{CHEAP}: 503]"}]}


class MockProviders(NamedTuple):
    """The running providers, and a configuration of the gateway that uses them."""

    cheap: MockProvider
    expensive: MockProvider
    config: Config


@asynccontextmanager
async def run_mock_providers(database: Path) -> AsyncIterator[MockProviders]:
    """Run both on free ports of loopback for the block; `database` is the ledger of the configuration."""
    cheap, expensive = MockProvider(CHEAP), MockProvider(EXPENSIVE)
    async with serving(cheap.app) as cheap_url, serving(expensive.app) as expensive_url:
        yield MockProviders(cheap, expensive, _config(cheap_url, expensive_url, database))


def _config(cheap_url: str, expensive_url: str, database: Path) -> Config:
    cheap = Provider(
        name=CHEAP,
        url=f"{cheap_url}/v1",
        models=("gpt-4o", "gpt-4o-mini", "claude-3.5-sonnet"),
        input_rate=5_000,
        output_rate=15_000,
        first_byte_timeout=PROVIDER_TIMEOUT,
        idle_timeout=PROVIDER_TIMEOUT,
    )
    expensive = Provider(
        name=EXPENSIVE,
        url=f"{expensive_url}/v1",
        models=("gpt-4o", "claude-3.5-sonnet"),
        input_rate=10_000,
        output_rate=30_000,
        base_fee=1,
        first_byte_timeout=PROVIDER_TIMEOUT,
        idle_timeout=PROVIDER_TIMEOUT,
    )
    return Config(
        providers=(cheap, expensive),
        server=Server(public=True),
        database=DatabaseConfig(path=str(database)),
        policies=Policies(rules=(CODE,)),
    )


def serve_mock(addresses: Sequence[str]) -> None:
    """Serve until SIGTERM or SIGINT; the ledger is in a temporary folder that is deleted at the end.

    Raises ConfigError, and OSError when the address can not be bound.
    """
    check_listen(addresses)
    run(_serve_mock(addresses))


async def _serve_mock(addresses: Sequence[str]) -> None:
    listen = addresses[0]
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "mock.db"
        async with run_mock_providers(database) as mocks:
            names = " and ".join(provider.name for provider in mocks.config.providers)
            click.echo(f"{names} behind http://{listen}/v1, no key; until this ends, the ledger: {database}")
            click.echo(_usage_text(listen))
            await serve_here(Arbstr(mocks.config), addresses, 1.0, mocks.config.server.keep_alive)


def _usage_text(listen: str) -> str:
    return f"""
GET  /v1/stats, /v1/requests, /v1/models, /providers, /metrics, /health, /livez, /readyz
POST /v1/chat/completions, /v1/cost

A message tells the providers what to do, as in [mock: stall] or [{CHEAP}: slow no-usage]:
{", ".join(MEANINGS)}
One that fails three times in a row is not asked for 30 s; /health shows that.

curl -i http://{listen}/v1/chat/completions -H 'content-type: application/json' \\
     -d '{json.dumps(EXAMPLE_REQUEST)}'
"""
