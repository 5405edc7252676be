"""Maintenance commands: `arbstr prune`, `arbstr forget`, `arbstr rollups`."""

import asyncio
import re
import sys
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import click

from arbstr_asgi.cli.options import config_option
from arbstr_asgi.cli.output import escape_terminal
from arbstr_asgi.config.config import Config

if TYPE_CHECKING:
    from arbstr_asgi.ledger.queries import LedgerReader

_AGE = re.compile(r"([1-9]\d{0,4})([hdw])", re.ASCII)
_HOURS = {"h": 1, "d": 24, "w": 24 * 7}
_PROGRESS_INTERVAL = 0.5  # seconds


@click.command()
@config_option
@click.option("--older-than", "age", required=True, metavar="AGE", help="As 90d; also h (hours) and w (weeks).")
def prune(path: Path, age: str) -> None:
    """Delete requests that arrived longer ago, by whole hours, and their attempts; their figures by hour and day stay.

    In small steps, beside running servers; what has been deleted when it is interrupted stays deleted.
    """

    before = datetime.now(UTC) - _parse_age(age)

    async def main() -> None:
        async with _open(path) as ledger:
            count = await ledger.prune(before, Progress("deleted"))
        click.echo(f"{count} requests from before {before:%Y-%m-%dT%H}:00Z deleted")

    asyncio.run(main())


@click.command()
@config_option
@click.option("--end-user", required=True, metavar="NAME", help="Exactly as in the rows.")
@click.option("--yes", is_flag=True, help="Don't ask.")
def forget(path: Path, end_user: str, *, yes: bool) -> None:
    """Delete what is about a person, for good: requests, attempts, roll-ups, and what waits on disk (the spill).

    What running servers have not written yet, and spills of other machines, can't be reached: run it there, and again
    when the person's last calls have ended.
    """
    if not yes:
        click.confirm(f"Delete all of {escape_terminal(end_user)}? This can't be undone.", abort=True, err=True)

    async def main() -> None:
        async with _open(path) as ledger:
            deleted = await ledger.forget(end_user)
            width = max(map(len, deleted))
            for table, count in deleted.items():
                click.echo(f"{table:<{width}}  {count} deleted")
            click.echo(f"not reached: calls that are running, and spills other than {ledger.spill_folder}", err=True)

    asyncio.run(main())


@click.command()
@config_option
def rollups(path: Path) -> None:
    """Compute the roll-ups of all past hours again from the rows, and say how many had been wrong.

    Ends with 0 if all agreed, else with 1; they are right then. Hours whose rows have been pruned stay as they are.
    """

    async def main() -> int:
        async with _open(path) as ledger:
            hours, differed = await ledger.rebuild(Progress("hours computed"))
        click.echo(f"{hours} hours computed again, {differed} had been wrong")
        return 1 if differed else 0

    sys.exit(asyncio.run(main()))


class Progress:
    """Prints the progress of a long command to stderr, at most twice a second."""

    def __init__(self, label: str) -> None:
        self._what = label
        self._next = 0.0

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` are processed."""
        if monotonic() >= self._next or done >= total:
            self._next = monotonic() + _PROGRESS_INTERVAL
            overwritten = sys.stderr.isatty() and done < total
            click.echo(f"{self._what}: {done} of {total}", err=True, nl=not overwritten)
            if overwritten:
                click.echo("\r", err=True, nl=False)


def _open(path: Path) -> "AbstractAsyncContextManager[LedgerReader]":
    from arbstr_asgi.ledger.queries import open_reader

    settings = Config.load(path).database
    return open_reader(settings.resolved_url, table_prefix=settings.table_prefix, spill=settings.spill)


def _parse_age(age: str) -> timedelta:
    match = _AGE.fullmatch(age)
    if match is None:
        raise click.BadParameter("write a number and h, d or w, as 90d", param_hint="--older-than")
    return timedelta(hours=int(match[1]) * _HOURS[match[2]])
