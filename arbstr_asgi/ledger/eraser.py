"""Takes a person out of the spills of a folder, whoever they belong to."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

from arbstr_asgi.ledger import values
from arbstr_asgi.ledger.driver import Driver
from arbstr_asgi.ledger.target import LedgerDatabase

_OF = "SELECT correlation_id FROM requests WHERE end_user = ?"


async def erase_from_spill(folder: Path, end_user: str) -> int:
    """Delete the rows of an end user from every spill, and what SQLite keeps of them; returns how many.

    Raises what SQLite raises.
    """
    erased = 0
    for file in _files(folder):
        erased += await _erase(file, values.text(end_user, 255))
    return erased


def _files(folder: Path) -> list[str]:
    """The ones that have ever held a row."""
    return [str(file.absolute()) for file in sorted(folder.glob("*.db")) if file.stat().st_size]


async def _erase(file: str, end_user: str) -> int:
    target = LedgerDatabase.create(f"sqlite:///{quote(file)}", "")
    try:
        sessions = await target.open(migrate=True)
        return await sessions.run(lambda raw: _delete(target.driver, raw, end_user))
    finally:
        await target.close()


async def _delete(driver: Driver, raw: Any, end_user: str) -> int:
    async with driver.begin(raw):
        await driver.execute(raw, f"DELETE FROM attempts WHERE correlation_id IN ({_OF})", (end_user,))  # noqa: S608
        erased = await driver.execute(raw, "DELETE FROM requests WHERE end_user = ?", (end_user,))
    await driver.fetch(raw, "VACUUM")  # a deleted row stays in its file until then
    await driver.fetch(raw, "PRAGMA wal_checkpoint(TRUNCATE)")
    return erased
