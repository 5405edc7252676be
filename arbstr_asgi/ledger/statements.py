"""The SQL of the ledger, one wording for each database; values are always parameters."""

from collections.abc import Callable
from dataclasses import dataclass

from arbstr_asgi.entry import OPEN
from arbstr_asgi.ledger.columns import COLUMNS

_OPEN = str(OPEN)  # constants of ours


@dataclass(frozen=True, slots=True)
class Statements:
    """Ready statements for one dialect and one table prefix."""

    table: str
    version_table: str
    upsert: str  # a row
    update_usage: str  # input_tokens, output_tokens, cost_sats, correlation_id
    newest: str  # limit
    of_call: str  # correlation_id, limit
    first: str  # limit; with the id in front
    count: str  # rows and the earliest arrival
    delete: str  # id, revision, end_reason
    in_flight: str  # before, after this id, limit; id, correlation_id, worker_id, timestamp
    abandon: str  # error_message, correlation_id
    version: str


def table_names(prefix: str) -> tuple[str, str]:
    """The table of the rows and the table with the schema's version."""
    return f"{prefix}requests", f"{prefix}arbstr_version"


def quoted(dialect: str, name: str) -> str:
    """A validated identifier in quotes, so that upper case and reserved words keep their meaning."""
    return f"`{name}`" if dialect == "mysql" else f'"{name}"'


def statements(dialect: str, prefix: str) -> Statements:
    """The SQL for `sqlite`, `postgresql` or `mysql`."""
    table, version_table = table_names(prefix)
    name = quoted(dialect, table)
    q = {column.name: quoted(dialect, column.name) for column in COLUMNS}
    mark = _marks(dialect)
    columns = ", ".join(q.values())
    select = f"SELECT {columns} FROM {name}"  # noqa: S608 - validated identifiers, no values
    order = f"ORDER BY {q['timestamp']} DESC, id DESC LIMIT"
    return Statements(
        table=table,
        version_table=version_table,
        upsert=f"INSERT INTO {name} ({columns}) VALUES ({', '.join(mark(i) for i in range(len(q)))}) "  # noqa: S608
        + _when_known(dialect, name, q),
        update_usage=f"UPDATE {name} SET {q['input_tokens']} = {mark(0)}, {q['output_tokens']} = {mark(1)}, "  # noqa: S608
        # The count of rows is true on MySQL only if the row changes, and the revision always does.
        f"{q['cost_sats']} = {mark(2)}, {q['revision']} = {q['revision']} + 1 WHERE {q['correlation_id']} = {mark(3)}",
        newest=f"{select} {order} {mark(0)}",
        of_call=f"{select} WHERE {q['correlation_id']} = {mark(0)} {order} {mark(1)}",
        first=f"SELECT id, {columns} FROM {name} ORDER BY id LIMIT {mark(0)}",  # noqa: S608
        count=f"SELECT count(*), min({q['timestamp']}) FROM {name}",  # noqa: S608
        delete=f"DELETE FROM {name} WHERE id = {mark(0)} AND {q['revision']} = {mark(1)} "  # noqa: S608
        f"AND {q['end_reason']} = {mark(2)}",
        in_flight=f"SELECT id, {q['correlation_id']}, {q['worker_id']}, {q['timestamp']} FROM {name} "  # noqa: S608
        f"WHERE {q['end_reason']} = 'in_flight' AND {q['timestamp']} < {mark(0)} AND id > {mark(1)} "
        f"ORDER BY id LIMIT {mark(2)}",
        abandon=f"UPDATE {name} SET {q['end_reason']} = 'abandoned', {q['error_message']} = {mark(0)} "  # noqa: S608
        f"WHERE {q['correlation_id']} = {mark(1)} AND {q['end_reason']} = 'in_flight'",
        version=f"SELECT version_num FROM {quoted(dialect, version_table)}",  # noqa: S608
    )


def _marks(dialect: str) -> Callable[[int], str]:
    """Writes the placeholder of the parameter at a place, counted from 0."""
    if dialect == "postgresql":
        return lambda place: f"${place + 1}"
    return lambda _: "%s" if dialect == "mysql" else "?"


def _when_known(dialect: str, table: str, q: dict[str, str]) -> str:
    """What an INSERT does to a row that is there: a newer state replaces it, a replay of an older one changes nothing.

    Newer is a higher revision; and a finished state after one in flight, whose revision `update_usage` may have raised,
    or after one that was given up as abandoned too early.
    """
    revision, reason = q["revision"], q["end_reason"]
    # MySQL's assignments see the ones before them: what the condition looks at comes last.
    order = [*(name for name in q if name not in {"correlation_id", "end_reason", "revision"}), "end_reason"]
    if dialect == "mysql":
        newer = f"VALUES({revision}) > {revision} OR ({reason} IN {_OPEN} AND VALUES({reason}) NOT IN {_OPEN})"
        sets = ", ".join(f"{q[n]} = IF({newer}, VALUES({q[n]}), {q[n]})" for n in order)
        return f"ON DUPLICATE KEY UPDATE {sets}, {revision} = GREATEST({revision}, VALUES({revision}))"
    greatest = "max" if dialect == "sqlite" else "greatest"
    sets = ", ".join(f"{q[n]} = excluded.{q[n]}" for n in order)
    return (
        f"ON CONFLICT ({q['correlation_id']}) DO UPDATE SET {sets}, "
        f"{revision} = {greatest}({table}.{revision}, excluded.{revision}) "
        f"WHERE {table}.{revision} < excluded.{revision} "
        f"OR ({table}.{reason} IN {_OPEN} AND excluded.{reason} NOT IN {_OPEN})"
    )
