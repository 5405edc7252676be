"""Two mock providers with prices, and the configuration that routes among them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from arbstr_asgi.config.config import Config
from arbstr_asgi.config.policies import Policies, Rule
from arbstr_asgi.config.provider import Provider
from arbstr_asgi.config.settings import DatabaseConfig, Server
from arbstr_asgi.mock import MockProvider
from arbstr_asgi.orders import CHEAP, EXPENSIVE
from arbstr_asgi.serve import serving

SECONDS_OF_PATIENCE = 5.0  # so that nobody who tries a stall need wait for minutes
CODE = Rule(
    name="code",
    allowed_models=("gpt-4o", "claude-3.5-sonnet"),
    max_sats_per_1m_output=50_000,
    keywords=("code", "function", "implement"),
)


class MockProviders(NamedTuple):
    """The providers that run, and a configuration with them behind it."""

    cheap: MockProvider
    expensive: MockProvider
    config: Config


@asynccontextmanager
async def run_mock_providers(database: Path) -> AsyncIterator[MockProviders]:
    """Run both on free ports of loopback for a block; the ledger of their configuration is `database`."""
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
        first_byte_timeout=SECONDS_OF_PATIENCE,
        idle_timeout=SECONDS_OF_PATIENCE,
    )
    expensive = Provider(
        name=EXPENSIVE,
        url=f"{expensive_url}/v1",
        models=("gpt-4o", "claude-3.5-sonnet"),
        input_rate=10_000,
        output_rate=30_000,
        base_fee=1,
        first_byte_timeout=SECONDS_OF_PATIENCE,
        idle_timeout=SECONDS_OF_PATIENCE,
    )
    return Config(
        providers=(cheap, expensive),
        server=Server(public=True),
        database=DatabaseConfig(path=str(database)),
        policies=Policies(rules=(CODE,)),
    )
