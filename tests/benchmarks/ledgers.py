"""The databases that are there for a benchmark."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from provider import TOKENS

from arbstr_asgi.ledger.ledger import Ledger

sys.path.append(str(Path(__file__).parents[2]))
from tests.support.databases import fresh_database, reachable

NAMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mysql": "MariaDB"}

Kinds = dict[str, tuple[str, str]]


@contextmanager
def ledgers(folder: Path, *, everything: bool) -> Iterator[Kinds]:
    """What ours is measured with: the kind of host and the URL of an empty database, gone afterwards."""
    with ExitStack() as stack:
        found: Kinds = {}
        for dialect in NAMES if everything else ("sqlite",):
            if reachable(dialect):
                found[f"ours, {NAMES[dialect]}"] = "ours", stack.enter_context(fresh_database(dialect, folder))
        if everything:
            found["ours, SQLite, strict"] = "strict", stack.enter_context(fresh_database("sqlite", folder))
        yield found


async def rows(url: str) -> int:
    """How many rows there are of calls that ended well, with the tokens that the provider said."""
    ledger = Ledger(url)
    await ledger.open()
    try:
        connections = ledger._open_reader().connections
        query = f"SELECT count(*) FROM requests WHERE end_reason = 'completed' AND input_tokens = {TOKENS[0]}"
        query += f" AND output_tokens = {TOKENS[1]}"
        ((found,),) = await connections.run(lambda raw: connections.driver.fetch(raw, query))
        return int(found)
    finally:
        await ledger.close()
