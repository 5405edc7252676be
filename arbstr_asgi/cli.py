"""The `arbstr` command."""

import asyncio
import stat
import sys
from pathlib import Path
from typing import Any

import click

from arbstr_asgi import __version__
from arbstr_asgi.checks import check_listen
from arbstr_asgi.config import Config
from arbstr_asgi.errors import ArbstrError
from arbstr_asgi.settings import DatabaseConfig

STANDALONE = 'This command needs hypercorn: pip install "arbstr-asgi[standalone]"'

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


class _Group(click.Group):
    """Shows our own errors as one line, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ArbstrError as error:
            raise click.ClickException(error.message) from None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="arbstr")
def main() -> None:
    """Meter chat completions: tokens, cost and timing of every call, in your own database."""


@main.command()
@config_option
@click.option("-l", "--listen", metavar="HOST:PORT", help="Instead of server.listen.")
@click.option("-w", "--workers", type=click.IntRange(1), help="Instead of server.workers.")
@click.option("--mock", is_flag=True, help="No config, no key: answer from a provider inside this process.")
def serve(path: Path, listen: str | None, workers: int | None, *, mock: bool) -> None:
    """Run the gateway as a server of its own, on hypercorn.

    SIGTERM or Ctrl-C ends it: running streams get server.grace seconds; with several workers a second signal ends them
    at once. The soft limit of open files is raised to the hard one.
    """
    try:
        from arbstr_asgi import serve as server
    except ImportError:
        raise click.ClickException(STANDALONE) from None
    server.prepare()
    if mock:
        from arbstr_asgi.mock_server import serve_mock

        serve_mock(listen or "127.0.0.1:8080")
        return
    config = server.overridden(Config.load(path), listen, workers)
    try:
        sys.exit(server.serve(config, path))
    except OSError as error:
        raise click.ClickException(f"can't listen on {config.server.listen}: {error.strerror}") from None


@main.command()
def demo() -> None:
    """Show what the client, the provider and the ledger see. No key, no config, no network; takes seconds."""
    try:
        from arbstr_asgi import demo as show
        from arbstr_asgi.serve import run
    except ImportError:
        raise click.ClickException(STANDALONE) from None
    same: list[bool] = []

    async def shown() -> None:
        same.append(await show.demo(click.echo))

    run(shown())
    sys.exit(0 if same == [True] else 1)


@main.command()
@config_option
@click.option("--url", help="A database URL, instead of the config's; for hosts that configure in code.")
@click.option("--table-prefix", help="Prefix of our tables; 'arbstr_' where the host hands over its database.")
@click.option("--sql", is_flag=True, help="Print the SQL of all migrations instead of running them.")
def migrate(path: Path, url: str | None, table_prefix: str | None, *, sql: bool) -> None:
    """Bring the ledger's tables up to date; run it before the new code starts."""
    from arbstr_asgi import ledger

    database = DatabaseConfig(url=url) if url else Config.load(path).database
    prefix = table_prefix if table_prefix is not None else (database.table_prefix or "")
    if sql:
        click.echo(ledger.migration_sql(database.resolved_url, table_prefix=prefix))
    else:
        click.echo(asyncio.run(ledger.migrate(database.resolved_url, table_prefix=prefix)))


@main.command()
@config_option
def check(path: Path) -> None:
    """Read the config, say what it means, and warn of what is probably not meant."""
    from arbstr_asgi.app import Arbstr

    config = Config.load(path)
    server = config.server
    check_listen(server.listen)
    ledger = Arbstr(config).ledger  # checks, opens nothing
    guard = (
        "anyone (server.public)" if server.public else "bearer token" if server.auth_token or server.tokens else None
    )
    click.echo(f"listen     {server.listen}, {server.workers} worker(s)")
    click.echo(f"callers    {guard or 'anyone'}")
    click.echo(f"metering   {config.metering}")
    click.echo(f"spill      {ledger.spill_folder}")
    for provider in config.providers:
        models = ", ".join(provider.models) or "every model"
        key = "key set" if provider.api_key else "no key"
        click.echo(f"provider   {provider.name}: {provider.url} ({models}; {key})")
    warnings = [
        f"provider {provider.name}: input_rate or output_rate is not set, so its cost is unknown (NULL)"
        for provider in config.providers
        if provider.input_rate is None or provider.output_rate is None
    ]
    if guard is None:
        warnings.append("nobody guards the server: set server.auth_token, or server.public = true if that is meant")
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        warnings.append(f"{path} can be read by others; chmod 600 it if it holds a key")
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo("ok")
