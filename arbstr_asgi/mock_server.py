"""`arbstr serve --mock`: the gateway in front of the mock provider, in one process, for one's own client."""

import tempfile
from pathlib import Path

import click

from arbstr_asgi.app import Arbstr
from arbstr_asgi.checks import check_listen
from arbstr_asgi.demo import config
from arbstr_asgi.mock import MockProvider
from arbstr_asgi.serve import run, serve_here, serving


def serve_mock(listen: str) -> None:
    """Serve until SIGTERM or SIGINT; the ledger is in a temporary folder that goes with the process."""
    check_listen(listen)
    run(_serve_mock(listen))


async def _serve_mock(listen: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "mock.db"
        async with serving(MockProvider().app) as provider_url:
            click.echo(f"mock provider behind http://{listen}/v1 (any model, no key); ledger: {database}")
            await serve_here(Arbstr(config(provider_url, database)), listen, grace=1.0)
