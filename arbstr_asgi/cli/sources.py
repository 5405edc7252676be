"""Where the terminal's answers come from: a running server, or the database of a configuration."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from arbstr_asgi.api.providers import to_json
from arbstr_asgi.config.config import Config
from arbstr_asgi.errors import ConfigError
from arbstr_asgi.stats.params import list_query

if TYPE_CHECKING:
    from arbstr_asgi.stats.service import StatsService

Pairs = Sequence[tuple[str, str]]
STATS, REQUESTS = "/v1/stats", "/v1/requests"

_decoder = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal)


class Source(Protocol):
    """Answers as a server's endpoints give them."""

    async def get(self, path: str, pairs: Pairs) -> dict[str, Any]:
        """The answer to a GET. Raises LedgerError or RequestError."""
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
    async with open_reader(config.database.resolved_url, table_prefix=config.database.table_prefix) as book:
        yield LocalSource(StatsService(book, config.providers))


class LocalSource:
    """The answers of a ledger, as if they had come from a server."""

    def __init__(self, answers: "StatsService") -> None:
        self._answers = answers

    async def get(self, path: str, pairs: Pairs) -> dict[str, Any]:
        """The answer, in plain values. Raises LedgerError or RequestError."""
        now = datetime.now(UTC)
        if path == STATS:
            found = await self._answers.stats(pairs, now)
        else:
            found = await self._answers.requests(list_query(pairs, now))
        return _decoder.decode(to_json(found))


def _token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get("ARBSTR_TOKEN") or None
    try:
        return file.read_text("utf-8").strip()
    except (OSError, UnicodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "not text"
        raise ConfigError(f"--token-file: {file}: {said}") from None
