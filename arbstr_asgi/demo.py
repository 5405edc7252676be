"""`arbstr demo`: what this package does, shown with real sockets and no key."""

import hashlib
import json
import tempfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import httpx

from arbstr_asgi.app import Arbstr
from arbstr_asgi.config import Config
from arbstr_asgi.gateway import CHAT_PATH
from arbstr_asgi.mock import MockProvider
from arbstr_asgi.provider import Provider
from arbstr_asgi.serve import serving
from arbstr_asgi.settings import DatabaseConfig, Server
from arbstr_asgi.table import table

MESSAGES = [{"role": "user", "content": "What did that cost?"}]
COLUMNS = (
    "end_user",
    "model",
    "streaming",
    "input_tokens",
    "output_tokens",
    "cost_sats",
    "latency_ms",
    "stream_duration_ms",
    "end_reason",
)


def config(provider_url: str, database: Path) -> Config:
    """A configuration with the mock provider behind it."""
    mock = Provider(
        name="mock",
        url=f"{provider_url}/v1",
        input_rate=Decimal(10_000),
        output_rate=Decimal(30_000),
        base_fee=Decimal(1),
    )
    return Config(providers=(mock,), server=Server(public=True), database=DatabaseConfig(path=str(database)))


async def demo(echo: Callable[[str], None]) -> bool:
    """Make one streaming and one plain call, directly and through the gateway. True if the client saw no difference."""
    provider = MockProvider()
    with tempfile.TemporaryDirectory() as folder:
        async with serving(provider.app) as provider_url:
            arbstr = Arbstr(config(provider_url, Path(folder) / "demo.db"), identify=lambda scope: "alice")
            async with serving(arbstr) as gateway_url, httpx.AsyncClient(trust_env=False) as client:
                same = [
                    await _compare(client, provider_url, gateway_url, provider, echo, stream=s) for s in (True, False)
                ]
                await arbstr.ledger.flush()
                echo("\nThe ledger (a table in your database, one row a call):\n")
                echo(table([*reversed(await arbstr.ledger.rows())], COLUMNS))
    echo("\nThe client got the provider's bytes." if all(same) else "\nThe client's bytes DIFFER from the provider's.")
    return all(same)


async def _compare(
    client: httpx.AsyncClient,
    provider_url: str,
    gateway_url: str,
    provider: MockProvider,
    echo: Callable[[str], None],
    *,
    stream: bool,
) -> bool:
    body = json.dumps({"model": "mock-1", "stream": stream, "messages": MESSAGES}).encode()
    direct = await _digest(client, provider_url, body)
    through = await _digest(client, gateway_url, body)
    echo(f"{'A streaming' if stream else 'A plain'} call")
    echo(f"  the client sent        {body.decode()}")
    echo(f"  the provider received  {provider.received[-1].decode()}")
    echo(f"  digest, direct         {direct}")
    echo(f"  digest, through arbstr {through}")
    return direct == through


async def _digest(client: httpx.AsyncClient, base_url: str, body: bytes) -> str:
    """SHA-256 of the reply's body as it came over the socket, and its size."""
    digest, size = hashlib.sha256(), 0
    headers = {"content-type": "application/json"}
    async with client.stream("POST", base_url + CHAT_PATH, content=body, headers=headers) as reply:
        reply.raise_for_status()
        async for chunk in reply.aiter_raw():
            digest.update(chunk)
            size += len(chunk)
    return f"{digest.hexdigest()} ({size} bytes)"
