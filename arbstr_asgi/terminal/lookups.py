"""`arbstr stats` and `arbstr tail`: the ledger, looked at from a terminal."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from arbstr_asgi.errors import ArbstrError, LedgerError
from arbstr_asgi.listing import to_json
from arbstr_asgi.terminal.options import Pairs, as_pairs, filter_options, server_options, stats_options
from arbstr_asgi.terminal.overview import overview
from arbstr_asgi.terminal.screen import request_line
from arbstr_asgi.terminal.shown import escape_terminal_json
from arbstr_asgi.terminal.source import STATS, open_source
from arbstr_asgi.terminal.watch import TailPoller

_POLL = 1.0  # seconds between looks
_FIRST_SHOWN = 10  # requests that have finished before


@click.command()
@server_options
@stats_options
@filter_options
@click.option("--json", "as_json", is_flag=True, help="As JSON, in the shape of GET /v1/stats.")
def stats(path: Path, url: str | None, token_file: Path | None, *, as_json: bool, **given: str | None) -> None:
    """Show what was used: requests, tokens, cost and durations, and how they went over time.

    Asks the config's database, for reading only, or with --url a running server. Cost and what was saved are in sats;
    saved is what the dearest providers that could have answered would have cost more. Unpriced requests have no known
    cost and are in no sum.
    """
    asyncio.run(_stats(path, url, token_file, as_pairs(given), as_json=as_json))


@click.command()
@server_options
@filter_options
def tail(path: Path, url: str | None, token_file: Path | None, **given: str | None) -> None:
    """Show each request when it has finished, and before that the last few; Ctrl-C ends it.

    A request that takes longer than ten minutes is not shown, nor all of more than 1,000 in a second.
    """
    try:
        asyncio.run(_tail(path, url, token_file, as_pairs(given)))
    except KeyboardInterrupt:
        click.echo(err=True)


async def _stats(path: Path, url: str | None, token_file: Path | None, pairs: Pairs, *, as_json: bool) -> None:
    async with open_source(path, url, token_file) as asked:
        with _understood():
            if as_json:
                click.echo(escape_terminal_json(to_json(await asked.get(STATS, pairs)).decode()))
            else:
                click.echo(await overview(asked, pairs))


async def _tail(path: Path, url: str | None, token_file: Path | None, pairs: Pairs) -> None:
    async with open_source(path, url, token_file) as asked:
        watch = TailPoller(asked, pairs)
        with _understood():
            _show((await watch.poll())[-_FIRST_SHOWN:])
        trouble = False
        while True:
            await asyncio.sleep(_POLL)
            try:
                with _understood():
                    _show(await watch.poll())
                trouble = False
            except LedgerError as error:
                if not trouble:
                    click.echo(f"{error.message}; trying again", err=True)
                trouble = True


def _show(requests: list[dict[str, Any]]) -> None:
    for request in requests:
        click.secho(request_line(request), fg=None if request["success"] else "red")


@contextmanager
def _understood() -> Iterator[None]:
    """Another server's answer may have any shape."""
    try:
        yield
    except ArbstrError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError):
        raise LedgerError("the server's answer is not understood: is it arbstr, of this version?") from None
