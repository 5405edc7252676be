"""`arbstr stats` and `arbstr tail`: statistics and finished requests in a terminal."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import click

from arbstr_asgi.cli.options import Pairs, filter_options, query_pairs, server_options, stats_options
from arbstr_asgi.cli.output import Json, TimeBuckets, escape_terminal_json, groups_of, request_line, stats_text
from arbstr_asgi.cli.sources import STATS, Source, open_source
from arbstr_asgi.cli.tail import TailPoller
from arbstr_asgi.errors import ArbstrError, LedgerError
from arbstr_asgi.stats.params import MAX_GROUPS
from arbstr_asgi.stats.serialize import to_json

_POLL_INTERVAL = 1.0  # seconds
_INITIAL_REQUESTS = 10  # finished before the command started


_MAX_RANGE = timedelta(days=10_000)


async def render_stats(source: Source, pairs: Pairs) -> str:
    """The text for the parameters of GET /v1/stats. Raises what the source raises."""
    answer = await source.get(STATS, pairs)
    names = [*answer.get("group_by", ())]
    since, until = (datetime.fromisoformat(answer[name]) for name in ("since", "until"))
    if answer.get("empty") or until - since > _MAX_RANGE:
        return stats_text(answer)
    buckets = TimeBuckets.create(since, until, answer.get("tz") or dict(pairs).get("tz", "UTC"))
    over_time = await _over_time(source, pairs, answer, names, buckets)
    return stats_text(answer) if over_time is None else stats_text(answer, buckets, over_time)


async def _over_time(
    source: Source, pairs: Pairs, answer: Json, names: list[str], buckets: TimeBuckets
) -> list[Json] | None:
    """The same groups by hour or day; None where that can not be queried, or exceeds MAX_GROUPS."""
    other_names = [name for name in names if name != buckets.unit]
    if len(other_names) > 1 or {"hour", "day"} & {*other_names}:
        return None
    times = [("since", answer["since"]), ("until", answer["until"]), ("limit", str(MAX_GROUPS))]
    replaced = {"group_by", "range", *dict(times)}
    kept_pairs = [pair for pair in pairs if pair[0] not in replaced]
    result = await source.get(STATS, [*kept_pairs, *times, ("group_by", ",".join([*other_names, buckets.unit]))])
    return None if result["truncated"] else groups_of(result)


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
    asyncio.run(_stats(path, url, token_file, query_pairs(given), as_json=as_json))


@click.command()
@server_options
@filter_options
def tail(path: Path, url: str | None, token_file: Path | None, **given: str | None) -> None:
    """Show each request when it has finished, and before that the last few; Ctrl-C ends it.

    A request that takes longer than ten minutes is not shown, nor all of more than 1,000 in a second.
    """
    try:
        asyncio.run(_tail(path, url, token_file, query_pairs(given)))
    except KeyboardInterrupt:
        click.echo(err=True)


async def _stats(path: Path, url: str | None, token_file: Path | None, pairs: Pairs, *, as_json: bool) -> None:
    async with open_source(path, url, token_file) as source:
        with _answer_errors():
            if as_json:
                click.echo(escape_terminal_json(to_json(await source.get(STATS, pairs)).decode()))
            else:
                click.echo(await render_stats(source, pairs))


async def _tail(path: Path, url: str | None, token_file: Path | None, pairs: Pairs) -> None:
    async with open_source(path, url, token_file) as source:
        poller = TailPoller(source, pairs)
        with _answer_errors():
            _show((await poller.poll())[-_INITIAL_REQUESTS:])
        failing = False
        while True:
            await asyncio.sleep(_POLL_INTERVAL)
            try:
                with _answer_errors():
                    _show(await poller.poll())
                failing = False
            except LedgerError as error:
                if not failing:
                    click.echo(f"{error.message}; trying again", err=True)
                failing = True


def _show(requests: list[dict[str, Any]]) -> None:
    for request in requests:
        click.secho(request_line(request), fg=None if request["success"] else "red")


@contextmanager
def _answer_errors() -> Iterator[None]:
    """Turn an unexpected shape of a response into a LedgerError."""
    try:
        yield
    except ArbstrError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError):
        raise LedgerError("the server's answer is not understood: is it arbstr, of this version?") from None
