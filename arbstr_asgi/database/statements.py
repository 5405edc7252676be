"""SQL statements that write and read the ledger, per dialect; values are always parameters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from arbstr_asgi.database.columns import ATTEMPT_COLUMNS, COLUMNS, Columns, Kind
from arbstr_asgi.database.records import IN_FLIGHT

_IN_FLIGHT = str(IN_FLIGHT)  # constants of ours
# What the first state of a call knows already; SQLite would write each of their indexes anew for the second one.
SET_ON_INSERT = ("timestamp", "end_user", "latency_ms")

Placeholders = Callable[[int], str]


class TableNames(NamedTuple):
    """Names of the tables and the view with their prefix; `version` is the table of the schema revision."""

    requests: str
    attempts: str
    version: str
    rollups: str
    dirty_hours: str
    all_attempts: str


@dataclass(frozen=True, slots=True)
class Statements:
    """Ready statements for one dialect and one table prefix; the comment behind each lists its parameters."""

    names: TableNames
    upsert: str  # a row
    upsert_attempt: str  # a row
    update_usage: str  # input_tokens, output_tokens, cost_sats, correlation_id
    oldest: str  # limit; with the id in front
    count_after: str  # this id; how many rows there are, the greatest id of all and the earliest arrival
    count_up_to: str  # the same up to this id
    delete: str  # correlation_id, revision, end_reason; for SQLite, as the next
    delete_attempts: str  # correlation_id; where no request is left
    in_flight: str  # before, after this id, limit; id, correlation_id, worker_id, timestamp
    abandon: str  # error_message, correlation_id
    abandon_attempt: str  # error_message, correlation_id
    mark_hour: str  # hour, writer, mark
    select_timestamp: str  # correlation_id
    select_all_attempts: str  # correlation_id; with those that the row of a call tells
    version: str
    _select_attempts: str = field(repr=False)
    _param: Placeholders = field(repr=False)

    def select_attempts(self, count: int) -> str:
        """SELECT the rows of attempts of `count` calls; the parameters are their correlation ids."""
        return self._select_attempts.format(", ".join(map(self._param, range(count))))


def table_names(prefix: str) -> TableNames:
    """The tables with this prefix."""
    return TableNames(
        *(
            f"{prefix}{name}"
            for name in ("requests", "attempts", "arbstr_version", "rollups", "dirty_hours", "all_attempts")
        )
    )


def quoted(dialect: str, name: str) -> str:
    """A validated identifier in quotes, so that upper case and reserved words are kept."""
    return f"`{name}`" if dialect == "mysql" else f'"{name}"'


def statements(dialect: str, prefix: str) -> Statements:
    """The statements for `sqlite`, `postgresql` or `mysql`."""
    names = table_names(prefix)
    name, attempts = quoted(dialect, names.requests), quoted(dialect, names.attempts)
    q = {column.name: quoted(dialect, column.name) for column in (*COLUMNS, *ATTEMPT_COLUMNS)}
    param = placeholders(dialect)
    columns, attempt_columns = (", ".join(q[column.name] for column in each) for each in (COLUMNS, ATTEMPT_COLUMNS))
    # Each by itself is a look into an index, both at once would be a walk through the table.
    bounds = f"(SELECT max(id) FROM {name}), (SELECT min({q['timestamp']}) FROM {name})"  # noqa: S608
    return Statements(
        names=names,
        upsert=_upsert(dialect, names.requests, COLUMNS, ["correlation_id"], "end_reason"),
        upsert_attempt=_upsert(dialect, names.attempts, ATTEMPT_COLUMNS, ["correlation_id", "number"]),
        # MySQL counts only rows that change; raising the revision makes each matched row change.
        update_usage=f"UPDATE {name} SET {q['input_tokens']} = {param(0)}, {q['output_tokens']} = {param(1)}, "  # noqa: S608
        f"{q['cost_sats']} = {param(2)}, {q['revision']} = {q['revision']} + 1 "
        f"WHERE {q['correlation_id']} = {param(3)}",
        oldest=f"SELECT id, {columns} FROM {name} ORDER BY id LIMIT {param(0)}",  # noqa: S608
        count_after=f"SELECT (SELECT count(*) FROM {name} WHERE id > {param(0)}), {bounds}",  # noqa: S608
        count_up_to=f"SELECT (SELECT count(*) FROM {name} WHERE id <= {param(0)}), {bounds}",  # noqa: S608
        # With VALUES, so that one statement can be for several.
        delete=f"DELETE FROM {name} WHERE id IN (SELECT r.id FROM (VALUES ({param(0)}, {param(1)}, {param(2)})) AS v "  # noqa: S608
        f"JOIN {name} AS r ON r.{q['correlation_id']} = v.column1 AND r.{q['revision']} = v.column2 "
        f"AND r.{q['end_reason']} = v.column3)",
        delete_attempts=f"DELETE FROM {attempts} WHERE {q['correlation_id']} IN (VALUES ({param(0)})) "  # noqa: S608
        f"AND NOT EXISTS (SELECT 1 FROM {name} AS r WHERE r.{q['correlation_id']} = {attempts}.{q['correlation_id']})",
        in_flight=f"SELECT id, {q['correlation_id']}, {q['worker_id']}, {q['timestamp']} FROM {name} "  # noqa: S608
        f"WHERE {q['end_reason']} = 'in_flight' AND {q['timestamp']} < {param(0)} AND id > {param(1)} "
        f"ORDER BY id LIMIT {param(2)}",
        abandon=f"UPDATE {name} SET {q['end_reason']} = 'abandoned', {q['error_message']} = {param(0)} "  # noqa: S608
        f"WHERE {q['correlation_id']} = {param(1)} AND {q['end_reason']} = 'in_flight'",
        abandon_attempt=f"UPDATE {attempts} SET {q['maybe_billed']} = TRUE, {q['error_message']} = {param(0)} "  # noqa: S608
        f"WHERE {q['correlation_id']} = {param(1)} AND {q['revision']} = 0",
        mark_hour=mark_hour(dialect, names.dirty_hours),
        select_timestamp=f"SELECT {q['timestamp']} FROM {name} WHERE {q['correlation_id']} = {param(0)}",  # noqa: S608
        select_all_attempts=f"SELECT {attempt_columns} FROM {quoted(dialect, names.all_attempts)} "  # noqa: S608
        f"WHERE {q['correlation_id']} = {param(0)} ORDER BY {q['number']}",
        version=f"SELECT version_num FROM {quoted(dialect, names.version)}",  # noqa: S608
        _select_attempts=f"SELECT {attempt_columns} FROM {attempts} "  # noqa: S608
        f"WHERE {q['correlation_id']} IN ({{}}) ORDER BY {q['correlation_id']}, {q['number']}",
        _param=param,
    )


def placeholders(dialect: str) -> Placeholders:
    """A function that returns the placeholder of the parameter at an index, counted from 0."""
    if dialect == "postgresql":
        return lambda place: f"${place + 1}"
    return lambda _: "%s" if dialect == "mysql" else "?"


def mark_hour(dialect: str, table: str) -> str:
    """UPSERT that marks an hour as dirty (its roll-ups are out of date).

    A repeated mark gets a new value, so that a builder that has read the old value does not clear it.
    """
    name, param = quoted(dialect, table), placeholders(dialect)
    insert = f"INSERT INTO {name} (hour, writer, mark) VALUES ({param(0)}, {param(1)}, {param(2)}) "  # noqa: S608
    if dialect == "mysql":
        return f"{insert}ON DUPLICATE KEY UPDATE mark = VALUES(mark)"
    return f"{insert}ON CONFLICT (hour, writer) DO UPDATE SET mark = excluded.mark"


def _upsert(dialect: str, table: str, columns: Columns, key: Sequence[str], reason: str = "") -> str:
    """INSERT, or UPDATE of a row in an older state; a newer state is kept.

    Newer means a higher revision; with a `reason` column also a finished state after one in flight (whose revision
    `update_usage` may have raised) or after one that was closed as abandoned too early. The columns in `SET_ON_INSERT`
    are not updated.
    """
    name, param = quoted(dialect, table), placeholders(dialect)
    q = {column.name: quoted(dialect, column.name) for column in columns}
    inserted = [param(place) + _cast(dialect, column.kind) for place, column in enumerate(columns)]
    insert = f"INSERT INTO {name} ({', '.join(q.values())}) VALUES ({', '.join(inserted)}) "  # noqa: S608
    # MySQL's assignments see the ones before them: what the condition looks at comes last.
    last = [*([reason] if reason else []), "revision"]
    order = [*(n for n in q if n not in {*key, *last, *(SET_ON_INSERT if reason else ())}), *last[:-1]]
    revision = q["revision"]
    if dialect == "mysql":
        newer = f"VALUES({revision}) > {revision}"
        if reason:
            newer += f" OR ({q[reason]} IN {_IN_FLIGHT} AND VALUES({q[reason]}) NOT IN {_IN_FLIGHT})"
        sets = ", ".join(f"{q[n]} = IF({newer}, VALUES({q[n]}), {q[n]})" for n in order)
        return f"{insert}ON DUPLICATE KEY UPDATE {sets}, {revision} = GREATEST({revision}, VALUES({revision}))"
    greatest = "max" if dialect == "sqlite" else "greatest"
    sets = ", ".join(f"{q[n]} = excluded.{q[n]}" for n in order)
    newer = f"{name}.{revision} < excluded.{revision}"
    if reason:
        newer += f" OR ({name}.{q[reason]} IN {_IN_FLIGHT} AND excluded.{q[reason]} NOT IN {_IN_FLIGHT})"
    return (
        f"{insert}ON CONFLICT ({', '.join(q[n] for n in key)}) DO UPDATE SET {sets}, "
        f"{revision} = {greatest}({name}.{revision}, excluded.{revision}) WHERE {newer}"
    )


def _cast(dialect: str, kind: Kind) -> str:
    """A cast from text; asyncpg takes ten times as long to encode a Decimal or a datetime."""
    if dialect != "postgresql":
        return ""
    return {Kind.MONEY: "::text::numeric", Kind.TIMESTAMP: "::text::timestamptz"}.get(kind, "")
