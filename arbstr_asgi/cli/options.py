"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from arbstr_asgi.stats.params import END_REASONS, FILTERS
from arbstr_asgi.stats.query import GROUPS

Command = Callable[..., Any]
Pairs = list[tuple[str, str]]

config_option = click.option(
    "-c",
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("arbstr.toml"),
    envvar="ARBSTR_CONFIG",
    show_default=True,
    show_envvar=True,
    help="The TOML file.",
)

_SERVER = (
    click.option("--url", help="Ask this running server, as http://127.0.0.1:8080, instead of the config's database."),
    click.option(
        "--token-file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="A file with the server's bearer token; otherwise the variable ARBSTR_TOKEN.",
    ),
)
_TIME = (
    click.option("--range", "range_", help="last_1h, last_24h, last_7d (the default) or last_30d."),
    click.option("--since", help="From this moment on, as 2026-11-22T10:00:00Z; instead of --range."),
    click.option("--until", help="Before this moment; the default is now."),
)
_GROUPING = (
    click.option("--group-by", help=f"One or two, with a comma between them, of {', '.join(GROUPS)}."),
    click.option("--tz", help="The time zone of hours and days, as Europe/Zurich; the default is UTC."),
)
_FILTER_HELP = {
    "end_reason": f"One of {', '.join(END_REASONS)}.",
    "status": "The error status, or 200 for a success.",
    "success": "true or false.",
    "streaming": "true or false.",
}


def server_options(command: Command) -> Command:
    """Options that choose the source: a config, or a running server."""
    return _add_options(command, config_option, *_SERVER)


def filter_options(command: Command) -> Command:
    """Options that filter requests; values are compared exactly."""
    options = [
        click.option(
            f"--{name.replace('_', '-')}", name, help=_FILTER_HELP.get(name, f"Only this {name.replace('_', ' ')}.")
        )
        for name in FILTERS
    ]
    return _add_options(command, *options)


def stats_options(command: Command) -> Command:
    """Options for the time range and the grouping."""
    return _add_options(command, *_TIME, *_GROUPING)


def query_pairs(values: dict[str, str | None]) -> Pairs:
    """Options as the query parameters of the same names."""
    return [(name.rstrip("_"), value) for name, value in values.items() if value is not None]


def _add_options(command: Command, *options: Callable[[Command], Command]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command
