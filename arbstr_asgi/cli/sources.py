"""The sources of the terminal commands: a running server over HTTP, or the database of a configuration."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from arbstr_asgi.config.config import Config
from arbstr_asgi.errors import ConfigError
from arbstr_asgi.stats.params import list_query
from arbstr_asgi.stats.serialize import to_json

if TYPE_CHECKING:
    from arbstr_asgi.stats.service import StatsService

Pairs = Sequence[tuple[str, str]]
STATS, REQUESTS = "/v1/stats", "/v1/requests"

_decoder = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal)


class Source(Protocol):
    """Returns the JSON of the endpoints of the ledger."""

    async def get(self, path: str, pairs: Pairs) -> dict[str, Any]:
        """The response to a GET. Raises LedgerError or RequestError."""
        ...


@asynccontextmanager
async def open_source(path: Path, url: str | None, token_file: Path | None) -> AsyncIterator[Source]:
    """The server at `url`, else the database of the config at `path`. Raises ConfigError or LedgerError."""
    if url is not None:
        from arbstr_asgi.cli.remote import RemoteSource

        async with RemoteSource(url, _token(token_file)) as remote:
            yield remote
        return
    from arbstr_asgi.ledger.queries import open_reader
    from arbstr_asgi.stats.service import StatsService

    config = Config.load(path)
    async with open_reader(config.database.resolved_url, table_prefix=config.database.table_prefix) as ledger:
        yield LocalSource(StatsService(ledger, config.providers))


class LocalSource:
    """The responses of the endpoints, computed from a ledger in this process."""

    def __init__(self, service: "StatsService") -> None:
        self._service = service

    async def get(self, path: str, pairs: Pairs) -> dict[str, Any]:
        """The response, in JSON types. Raises LedgerError or RequestError."""
        now = datetime.now(UTC)
        if path == STATS:
            answer = await self._service.stats(pairs, now)
        else:
            answer = await self._service.requests(list_query(pairs, now))
        return _decoder.decode(to_json(answer))


def _token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get("ARBSTR_TOKEN") or None
    try:
        return file.read_text("utf-8").strip(" \t\r\n")
    except (OSError, UnicodeError) as error:
        text = error.strerror if isinstance(error, OSError) else "not text"
        raise ConfigError(f"--token-file: {file}: {text}") from None
