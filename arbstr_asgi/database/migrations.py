"""Runs the Alembic scripts in `migrations/`, on an open connection or as an SQL script."""

import asyncio
import io
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import StaticPool

from arbstr_asgi.database.drivers.base import Driver
from arbstr_asgi.database.statements import table_names

_ENGINES = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "mysql": "mysql+aiomysql"}
_ALEMBIC = threading.Lock()  # Alembic keeps its context in module globals: one migration at a time in a process


async def upgrade(driver: Driver, raw: Any, prefix: str, outdated: Callable[[], Awaitable[str | None]]) -> str | None:
    """Take the migration lock, await `outdated` and upgrade unless it returns None; returns its result.

    The lock excludes all other processes. `raw` comes from the pool of `databases`, so its TLS, credentials and sockets
    are used.
    """

    async def creator(*_: Any, **__: Any) -> Any:
        return raw

    engine = create_async_engine(f"{_ENGINES[driver.dialect]}://", poolclass=StaticPool, async_creator=creator)
    async with engine.connect() as connection:  # never disposed of: the connection is not the engine's
        await connection.exec_driver_sql("SELECT 1")  # begins SQLAlchemy's transaction, for the lock to be inside
        await driver.lock(raw, prefix)
        try:
            result = await outdated()
            if result is not None:
                while not _ALEMBIC.acquire(blocking=False):  # noqa: ASYNC110 - may be held by another thread's loop
                    await asyncio.sleep(0.01)
                try:
                    await connection.run_sync(_upgrade, driver.dialect, prefix)
                finally:
                    _ALEMBIC.release()
            await connection.commit()
        finally:
            await driver.unlock(raw, prefix)
    return result


def script(dialect: str, prefix: str) -> str:
    """The SQL of all migrations, for an empty database."""
    config = _config(dialect, prefix)
    config.output_buffer = io.StringIO()
    with _ALEMBIC:
        command.upgrade(config, "head", sql=True)
    return config.output_buffer.getvalue()


def folder() -> Path:
    """`migrations/`: inside the package when installed from a wheel, beside it in a checkout.

    In an editable install the copy in site-packages is outdated; this finds the checkout's.
    """
    package = Path(__file__).resolve().parents[1]
    shipped = package / "migrations"
    return shipped if (shipped / "env.py").is_file() else package.parent / "migrations"


def _config(dialect: str, prefix: str) -> Config:
    config = Config()  # no ini file, and so no word about logging
    config.set_main_option("script_location", str(folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    names = table_names(prefix)
    config.attributes.update(
        dialect=dialect,
        table=names.requests,
        attempts_table=names.attempts,
        version_table=names.version,
        rollups_table=names.rollups,
        dirty_hours_table=names.dirty_hours,
        all_attempts_view=names.all_attempts,
    )
    return config


def _upgrade(connection: Connection, dialect: str, prefix: str) -> None:
    config = _config(dialect, prefix)
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
