"""Fills a ledger's database with realistic rows, millions in minutes, past the ledger."""

import asyncio
import json
import random
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Any
from urllib.parse import unquote, urlsplit

from arbstr_asgi.database.drivers.base import format_timestamp
from tests.support.databases import dialect_of, sqlite_file

MODELS = [f"{family}-{size}" for family in ("gpt", "claude", "llama", "mistral") for size in ("large", "small", "mini")]
PROVIDERS = ["alpha", "beta", "gamma", "delta"]
END_USERS = 2000
TENANTS = 20
POLICIES = ["cheap", "fast", "private"]
DAYS = 28
CHUNK = 20_000
IN_FLIGHT = 50  # the newest
# fmt: off
COLUMNS = (
    "correlation_id", "timestamp", "model", "provider", "policy", "streaming", "input_tokens",
    "output_tokens", "cost_sats", "dearest_cost_sats", "latency_ms", "stream_duration_ms", "ttft_ms", "success",
    "error_status", "error_message", "end_user", "tenant", "response_model", "response_id", "finish_reason",
    "total_tokens", "usage_json", "usage_source", "end_reason", "attempts", "worker_id", "revision",
)
# fmt: on
ENDINGS = [
    (True, None, None, "stop", "provider", "completed", 1),
    (True, None, None, None, "estimated", "client_disconnected", 1),
    (False, 503, "upstream_error: overloaded", None, "none", "upstream_error", 1),
    (False, 504, "timeout: no answer", None, "none", "timeout", 1),
    (False, None, None, None, "none", "in_flight", 0),
]


def rows(count: int, until: datetime, seed: int = 7) -> Iterator[list[tuple[Any, ...]]]:
    """In the order of their arrival, up to `until`, in chunks; moments are datetimes, money is text."""
    chance = random.Random(seed)
    zipf = list(accumulate(1 / rank for rank in range(1, END_USERS + 1)))
    users = [f"user-{number:04}@example.com" for number in range(END_USERS)]
    step = timedelta(days=DAYS) / count
    arrival = until - timedelta(days=DAYS)
    for first in range(0, count, CHUNK):
        size = min(CHUNK, count - first)
        who = chance.choices(range(END_USERS), cum_weights=zipf, k=size)
        models = chance.choices(MODELS, weights=range(12, 0, -1), k=size)
        providers = chance.choices([*PROVIDERS, None], weights=[40, 30, 20, 9, 1], k=size)
        policies = chance.choices([*POLICIES, None], k=size)
        endings = chance.choices(ENDINGS[:-1], weights=[945, 20, 25, 10], k=size)
        if first + size == count:
            endings[-IN_FLIGHT:] = ENDINGS[-1:] * min(IN_FLIGHT, size)
        spread = [chance.lognormvariate(6.5, 0.8) for _ in range(size)]
        made = []
        for place in range(size):
            number = first + place
            success, status, message, finish, source, reason, revision = endings[place]
            user, wait, streaming = who[place], int(spread[place]), spread[place - 1] > 500
            known = source != "none"
            given, answered = (wait * 7 % 4000, int(spread[place - 2])) if known else (None, None)
            nanos = given * 10_000 + answered * 30_000 + 10**9 if given is not None and answered is not None else None
            made.append(
                (
                    f"{number:08x}-{number * 2654435761 % 2**32:08x}",
                    arrival + step * number,
                    models[place],
                    providers[place],
                    policies[place],
                    streaming,
                    given,
                    answered,
                    money(nanos),
                    money(None if nanos is None or user % 3 else nanos * 2),
                    wait if providers[place] else None,
                    wait + int(spread[place - 3]) * 5 if streaming else None,
                    wait + 30 if streaming else None,
                    success,
                    status,
                    message,
                    users[user] if user else None,
                    f"tenant-{user % TENANTS}",
                    models[place],
                    f"chatcmpl-{number:024x}",
                    finish,
                    None if given is None or answered is None else given + answered,
                    json.dumps({"prompt_tokens": given, "completion_tokens": answered}) if known else None,
                    source,
                    reason,
                    1,
                    None,
                    revision,
                )
            )
        yield made


def money(nanos: int | None) -> str | None:
    """Billionths as an amount."""
    return None if nanos is None else f"{nanos // 10**9}.{nanos % 10**9:09}"


def fill(url: str, count: int, until: datetime | None = None) -> float:
    """Insert rows into migrated, empty tables; the indexes are made at the end. Returns the seconds."""
    begun = time.monotonic()
    until = until or datetime.now(UTC)
    dialect = dialect_of(url)
    if dialect == "sqlite":
        _fill_sqlite(sqlite_file(url), rows(count, until))
    elif dialect == "postgresql":
        asyncio.run(_fill_postgresql(url, rows(count, until)))
    else:
        asyncio.run(_fill_mysql(url, rows(count, until)))
    return time.monotonic() - begun


def _fill_sqlite(file: str, chunks: Iterator[list[tuple[Any, ...]]]) -> None:
    connection = sqlite3.connect(file, isolation_level=None)
    connection.executescript(
        "PRAGMA synchronous = OFF; PRAGMA cache_size = -200000; PRAGMA wal_autocheckpoint = 100000"
    )
    made = connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'requests' AND sql IS NOT NULL"
    ).fetchall()
    for name, _ in made:
        connection.execute(f'DROP INDEX "{name}"')
    sql = f"INSERT INTO requests ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
    for chunk in chunks:
        as_text = ((call, format_timestamp(at), *rest) for call, at, *rest in chunk)
        connection.execute("BEGIN")
        connection.executemany(sql, as_text)
        connection.execute("COMMIT")
    for _, statement in made:
        connection.execute(statement)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()


async def _fill_postgresql(url: str, chunks: Iterator[list[tuple[Any, ...]]]) -> None:
    from decimal import Decimal

    import asyncpg

    connection = await asyncpg.connect(url)
    made = await connection.fetch(
        "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'requests' AND indexname LIKE 'ix_%'"
    )
    for name, _ in made:
        await connection.execute(f'DROP INDEX "{name}"')
    amounts = [COLUMNS.index("cost_sats"), COLUMNS.index("dearest_cost_sats")]
    for chunk in chunks:
        ready = []
        for row in chunk:
            values = list(row)
            for place in amounts:
                values[place] = None if values[place] is None else Decimal(values[place])
            ready.append(values)
        await connection.copy_records_to_table("requests", records=ready, columns=COLUMNS)
    for _, statement in made:
        await connection.execute(statement)
    await connection.execute("VACUUM ANALYZE requests")
    await connection.close()


async def _fill_mysql(url: str, chunks: Iterator[list[tuple[Any, ...]]]) -> None:
    import aiomysql

    at = urlsplit(url)
    connection = await aiomysql.connect(
        host=at.hostname,
        port=at.port or 3306,
        user=unquote(at.username or ""),
        password=unquote(at.password or ""),
        db=at.path[1:],
        autocommit=False,
    )
    names = ", ".join(f"`{name}`" for name in COLUMNS)
    sql = f"INSERT INTO requests ({names}) VALUES ({', '.join(['%s'] * len(COLUMNS))})"
    async with connection.cursor() as cursor:
        for chunk in chunks:
            await cursor.executemany(sql, [(call, at_.replace(tzinfo=None), *rest) for call, at_, *rest in chunk])
            await connection.commit()
    connection.close()
