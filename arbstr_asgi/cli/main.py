"""The `arbstr` command."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import click

from arbstr_asgi import __version__
from arbstr_asgi.cli.admin import forget, prune, rollups
from arbstr_asgi.cli.mock.directives import BOTH, CHEAP, EXPENSIVE, MEANINGS
from arbstr_asgi.cli.options import config_option
from arbstr_asgi.cli.stats import stats, tail
from arbstr_asgi.config.api_keys import key_sources
from arbstr_asgi.config.config import Config
from arbstr_asgi.config.loading import read_toml
from arbstr_asgi.config.settings import DatabaseConfig, Server
from arbstr_asgi.config.validation import check_listen
from arbstr_asgi.errors import ArbstrError

LISTED = "\n".join(f"  {word:17} {meaning}" for word, meaning in MEANINGS.items())
STANDALONE = 'This command needs hypercorn: pip install "arbstr-asgi[standalone]"'

MOCK = f"""
With --mock, {CHEAP} and {EXPENSIVE} answer, and the ledger is in a temporary folder. The last user message tells one
or both what to do, as in [{CHEAP}: 503] or [{BOTH}: slow no-usage]:

\b
{LISTED}
"""


class _Group(click.Group):
    """Prints our own errors as one line, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ArbstrError as error:
            raise click.ClickException(error.message) from None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="arbstr")
def main() -> None:
    """Meter chat completions: tokens, cost and timing of every call, in your own database."""


for command in (stats, tail, prune, forget, rollups):
    main.add_command(command)


@main.command(epilog=MOCK)
@config_option
@click.option("-l", "--listen", metavar="HOST:PORT", multiple=True, help="Instead of server.listen; may be repeated.")
@click.option("-w", "--workers", type=click.IntRange(1), help="Instead of server.workers.")
@click.option("--mock", is_flag=True, help="No config, no key: answer from two providers inside this process.")
def serve(path: Path, listen: tuple[str, ...], workers: int | None, *, mock: bool) -> None:
    """Run the gateway as a server of its own, on hypercorn.

    SIGTERM or Ctrl-C ends it: running streams get server.grace seconds; with several workers a second signal ends them
    at once. The soft limit of open files is raised to the hard one. It logs to stderr as the config's [logging] says.
    """
    try:
        from arbstr_asgi.cli import server
    except ImportError:
        raise click.ClickException(STANDALONE) from None
    if mock:
        _serve_mock(listen or Server().addresses, workers or 1)
        return
    config = server.overridden(Config.load(path), listen, workers)
    server.prepare(config.logging.number)
    try:
        sys.exit(server.serve(config, path))
    except OSError as error:
        raise _listen_error(error) from None


def _serve_mock(listen: tuple[str, ...], workers: int) -> None:
    from arbstr_asgi.cli import server
    from arbstr_asgi.cli.mock import server as mock_server

    if workers > 1:
        raise click.ClickException("--mock is one process with its providers and its ledger; leave out -w")
    server.prepare()
    try:
        mock_server.serve_mock(listen)
    except OSError as error:
        raise _listen_error(error) from None


def _listen_error(error: OSError) -> click.ClickException:
    return click.ClickException(f"can't listen on {error.filename or 'the address'}: {error.strerror}")


@main.command()
def demo() -> None:
    """Show what the client, the provider and the ledger see. No key, no config, no network; takes seconds."""
    try:
        from arbstr_asgi.cli import demo as show
        from arbstr_asgi.cli.server import run
    except ImportError:
        raise click.ClickException(STANDALONE) from None
    same: list[bool] = []

    async def run_demo() -> None:
        same.append(await show.demo(click.echo))

    run(run_demo())
    sys.exit(0 if same == [True] else 1)


@main.command()
@config_option
@click.option("--url", help="A database URL, instead of the config's; for hosts that configure in code.")
@click.option("--table-prefix", help="Prefix of our tables; 'arbstr_' where the host hands over its database.")
@click.option("--sql", is_flag=True, help="Print the SQL of all migrations instead of running them.")
def migrate(path: Path, url: str | None, table_prefix: str | None, *, sql: bool) -> None:
    """Bring the ledger's tables up to date; run it before the new code starts."""
    from arbstr_asgi.database import database as migrations

    database = DatabaseConfig(url=url) if url else Config.load(path).database
    prefix = table_prefix if table_prefix is not None else (database.table_prefix or "")
    if sql:
        click.echo(migrations.migration_sql(database.resolved_url, table_prefix=prefix))
    else:
        click.echo(asyncio.run(migrations.migrate(database.resolved_url, table_prefix=prefix)))


@main.command()
@config_option
def check(path: Path) -> None:
    """Read the config, say what it means, and warn of what is probably not meant.

    Of each provider's key it says where it comes from; of the key itself, its first 6 characters if it has 16 or more.
    """
    from arbstr_asgi.api import providers as listing
    from arbstr_asgi.app import Arbstr
    from arbstr_asgi.config.warnings import key_warnings, quote_warnings, settings_warnings
    from arbstr_asgi.providers.api_keys import describe_keys, keys_in_files
    from arbstr_asgi.providers.client import HttpClient

    config = Config.load(path)
    server = config.server
    check_listen(server.addresses)
    ledger = Arbstr(config).ledger  # checks, opens nothing
    HttpClient(config.providers).open()
    guard = "bearer token" if server.auth_token or server.tokens else "anyone"
    click.echo(f"listen     {', '.join(server.addresses)}, {server.workers} worker(s)")
    click.echo(f"callers    {'anyone (server.public)' if server.public else guard}")
    click.echo(f"metering   {config.metering}")
    click.echo(f"spill      {ledger.spill_folder}")
    sources = key_sources(read_toml(path), os.environ)
    keys, unreadable = keys_in_files(config)
    for provider, key in zip(config.providers, describe_keys(config, sources, keys), strict=True):
        models = ", ".join(provider.models) or "every model"
        click.echo(f"provider   {provider.name}: {provider.url} ({models}; key: {key})")
        for line in listing.usd_rate_lines(provider):
            click.echo(f"rates      {line}")
    warnings = (
        *settings_warnings(config),
        *unreadable,
        *quote_warnings(config, keys),
        *key_warnings(config, sources, path),
    )
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo("ok")


@main.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="As JSON, in the shape of GET /providers.")
def providers(path: Path, *, as_json: bool) -> None:
    """List the config's providers: their models, what they charge, and where their keys come from.

    Rates are sats per 1,000,000 tokens, base is sats per request, both also in USD where they are given so, and "-" is
    unknown. A row without a name has the rates of one model of the provider above it.
    """
    from arbstr_asgi.api import providers as listing
    from arbstr_asgi.cli.output import table
    from arbstr_asgi.providers.api_keys import describe_keys, keys_in_files
    from arbstr_asgi.stats.serialize import to_json

    config = Config.load(path)
    keys, unreadable = keys_in_files(config)
    if as_json:
        click.echo(to_json(listing.provider_listing(config, keys)))
    else:
        key_texts = describe_keys(config, key_sources(read_toml(path), os.environ), keys)
        click.echo(table(listing.provider_rows(config, key_texts), listing.COLUMNS))
        click.echo("\nsats per 1,000,000 tokens, base: sats per request; -: unknown")
        if config.sats_per_usd is not None:
            click.echo(f"USD: as given, at {config.sats_per_usd:f} sats")
    for warning in unreadable:
        click.echo(f"warning: {warning}", err=True)
