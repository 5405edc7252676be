"""`arbstr demo`: metering and failover with real sockets, mock providers and no key."""

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import httpx

from arbstr_asgi.app import CHAT_PATH, Arbstr
from arbstr_asgi.cli.mock.directives import CHEAP
from arbstr_asgi.cli.mock.provider import MockProvider
from arbstr_asgi.cli.mock.server import run_mock_providers
from arbstr_asgi.cli.output import table
from arbstr_asgi.cli.server import serving

MODEL = "gpt-4o"
PROMPT = "What did that cost?"
COLUMNS = (
    "end_user",
    "provider",
    "streaming",
    "attempts",
    "input_tokens",
    "output_tokens",
    "cost_sats",
    "latency_ms",
    "stream_duration_ms",
    "end_reason",
)
ATTEMPT_COLUMNS = ("number", "provider", "status", "input_tokens", "output_tokens", "cost_sats", "error_message")
JSON_TYPE = {"content-type": "application/json"}

Echo = Callable[[str], None]


async def demo(echo: Echo) -> bool:
    """Make one streaming and one plain call, directly and through the gateway, and one that fails over.

    True if the client received the same bytes both ways.
    """
    with tempfile.TemporaryDirectory() as folder:
        async with run_mock_providers(Path(folder) / "demo.db") as mocks:
            arbstr = Arbstr(mocks.config, identify=lambda scope: "alice")
            direct = mocks.config.providers[0].url.removesuffix("/v1")
            async with serving(arbstr) as gateway_url, httpx.AsyncClient(trust_env=False) as client:
                identical = [
                    await _compare(client, direct, gateway_url, mocks.cheap, echo, stream=s) for s in (True, False)
                ]
                failover_id = await _failover_call(client, gateway_url, echo)
                await arbstr.ledger.flush()
                echo("\nThe ledger (a table in your database, one row a call):\n")
                echo(table([*reversed(await arbstr.ledger.rows())], COLUMNS))
                echo("\nThe attempts of the last call (a table beside it):\n")
                echo(table(await arbstr.ledger.attempts(failover_id), ATTEMPT_COLUMNS))
    echo(
        "\nThe client got the provider's bytes."
        if all(identical)
        else "\nThe client's bytes DIFFER from the provider's."
    )
    return all(identical)


async def _compare(
    client: httpx.AsyncClient,
    provider_url: str,
    gateway_url: str,
    provider: MockProvider,
    echo: Echo,
    *,
    stream: bool,
) -> bool:
    body = _body(PROMPT, stream=stream)
    direct = await _digest(client, provider_url, body)
    through = await _digest(client, gateway_url, body)
    echo(f"{'A streaming' if stream else 'A plain'} call")
    echo(f"  the client sent        {body.decode()}")
    echo(f"  the provider received  {provider.received[-1].decode()}")
    echo(f"  digest, direct         {direct}")
    echo(f"  digest, through arbstr {through}")
    return direct == through


async def _failover_call(client: httpx.AsyncClient, gateway_url: str, echo: Echo) -> str:
    """A call that the first provider fails; returns its correlation id."""
    body = _body(f"{PROMPT} [{CHEAP}: 503]", stream=True)
    reply = await client.post(gateway_url + CHAT_PATH, content=body, headers=JSON_TYPE)
    reply.raise_for_status()
    echo("A call that the first provider is told to fail")
    echo(f"  the client sent        {body.decode()}")
    echo(f"  it was answered by     {reply.headers['x-arbstr-provider']}, status {reply.status_code}")
    echo(f"  failed before          {reply.headers.get('x-arbstr-retries', '-')}")
    return str(reply.headers["x-arbstr-request-id"])


def _body(prompt: str, *, stream: bool) -> bytes:
    return json.dumps({"model": MODEL, "stream": stream, "messages": [{"role": "user", "content": prompt}]}).encode()


async def _digest(client: httpx.AsyncClient, base_url: str, body: bytes) -> str:
    """SHA-256 of the response body as received from the socket, and its size."""
    digest, size = hashlib.sha256(), 0
    async with client.stream("POST", base_url + CHAT_PATH, content=body, headers=JSON_TYPE) as reply:
        reply.raise_for_status()
        async for chunk in reply.aiter_raw():
            digest.update(chunk)
            size += len(chunk)
    return f"{digest.hexdigest()} ({size} bytes)"
