"""Roll-ups of `requests` by hour, six hours and day, the hours yet to be rolled up, and what sorted pages need.

As in 0001, what MariaDB and MySQL may have left half done can be done again.
"""

from typing import Any

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects import mysql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_MONEY = sa.Numeric(24, 9).with_variant(sa.Text(), "sqlite")
_KEY = sa.String(256)  # a value and its end
_DOCUMENT = sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")
_BINARY = {
    "mysql_collate": "utf8mb4_bin",
    "mysql_charset": "utf8mb4",
    "mariadb_collate": "utf8mb4_bin",
    "mariadb_charset": "utf8mb4",
}
_PERIODS = ("day", "6h", "hour")
_SINCE_YEAR_1 = 62_135_596_800  # seconds until 1970: hours are counted from there, so that none is negative
_HOURS = {
    "sqlite": f"(CAST(strftime('%s', timestamp) AS INTEGER) + {_SINCE_YEAR_1}) / 3600",
    "postgresql": f"CAST(floor((extract(epoch FROM timestamp) + {_SINCE_YEAR_1}) / 3600) AS BIGINT)",
    "mysql": "TIMESTAMPDIFF(SECOND, '0001-01-01', timestamp) DIV 3600",
}


def upgrade() -> None:
    """Add the column, the tables and the indexes; every hour that has rows has yet to be rolled up."""
    names = context.config.attributes
    table, rollups, dirty_hours = names["table"], names["rollups_table"], names["dirty_hours_table"]
    repeatable = _dialect() == "mysql" and not context.is_offline_mode()
    inspector = sa.inspect(op.get_bind()) if repeatable else None
    columns = {found["name"] for found in inspector.get_columns(table)} if inspector else set()
    if "dearest_cost_sats" not in columns:
        op.add_column(table, sa.Column("dearest_cost_sats", _MONEY))
    op.create_table(rollups, *_rollups(), sqlite_with_rowid=False, if_not_exists=repeatable or None, **_BINARY)
    op.create_table(dirty_hours, *_dirty_hours(), if_not_exists=repeatable or None, **_BINARY)
    _create_indexes(table, {str(found["name"]) for found in inspector.get_indexes(table)} if inspector else set())
    _fill(table, rollups, dirty_hours)


def downgrade() -> None:
    """Drop what was added."""
    names = context.config.attributes
    for name, _ in _indexes():
        op.drop_index(f"ix_{names['table']}_{name}", names["table"])
    op.drop_table(names["dirty_hours_table"])
    op.drop_table(names["rollups_table"])
    op.drop_column(names["table"], "dearest_cost_sats")


def _dialect() -> str:
    name = context.get_context().dialect.name
    return "mysql" if name == "mariadb" else name


def _rollups() -> list[Any]:
    key = ("period", "dimensions", "start", "key1", "key2")
    return [
        sa.Column("period", sa.String(8), nullable=False),
        sa.Column("dimensions", sa.String(32), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("key1", _KEY, nullable=False),
        sa.Column("key2", _KEY, nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        *(sa.Column(name, _DOCUMENT) for name in ("sums", "latency_ms", "ttft_ms", "stream_duration_ms")),
        sa.PrimaryKeyConstraint(*key),
    ]


def _dirty_hours() -> list[Any]:
    return [
        sa.Column("hour", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("writer", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("mark", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("hour", "writer"),
    ]


def _indexes() -> list[tuple[str, list[Any]]]:
    sorted_by = {
        # The column itself too: SQLite before 3.41 does not see that the expressions are all that is asked of it.
        "sqlite": ["CAST(cost_sats AS INTEGER)", _NANOS, "id", "timestamp", "cost_sats"],
        "postgresql": ["cost_sats", "id", "timestamp"],
        "mysql": ["cost_sats", "id", "timestamp"],
    }[_dialect()]
    return [
        ("end_user", ["end_user", "timestamp"]),
        ("latency_ms", ["latency_ms", "id", "timestamp"]),
        ("cost_sats", [name if name in {"id", "timestamp", "cost_sats"} else sa.text(name) for name in sorted_by]),
    ]


_NANOS = "CAST(CASE WHEN cost_sats < '0' THEN '-' ELSE '' END || substr(cost_sats, -9) AS INTEGER)"


def _create_indexes(table: str, there: set[str]) -> None:
    for name, columns in _indexes():
        if f"ix_{table}_{name}" not in there:
            # A row is written when its call begins, and again when it ends: until then it has no cost to be indexed.
            known = None if name == "end_user" else sa.text(f"{name} IS NOT NULL")
            op.create_index(f"ix_{table}_{name}", table, columns, sqlite_where=known, postgresql_where=known)


def _fill(table: str, rollups: str, dirty_hours: str) -> None:
    quote = op.get_context().dialect.identifier_preparer.quote
    hour = _HOURS[_dialect()].replace("timestamp", quote("timestamp"))
    requests, hours, states = quote(table), quote(dirty_hours), quote(rollups)
    op.execute(f"DELETE FROM {hours}")  # noqa: S608 - validated identifiers
    op.execute(f"INSERT INTO {hours} (hour, writer, mark) SELECT DISTINCT {hour}, 0, 0 FROM {requests}")  # noqa: S608
    # Hours before `sealed` are rolled up, empty or dirty, those before `pruned` have no rows any more, the `generation`
    # of a period is another whenever roll-ups of that length have changed, and whoever has the `lease` rolls up.
    op.execute(f"DELETE FROM {states} WHERE period = 'state'")  # noqa: S608
    sealed = f"SELECT coalesce(max(hour) + 1, 0) FROM {hours}"  # noqa: S608
    found = {("sealed", ""): sealed, ("pruned", ""): "SELECT 0", ("lease", ""): "SELECT 0"}
    for (state, period), total in {**found, **{("generation", period): "SELECT 0" for period in _PERIODS}}.items():
        op.execute(
            f"INSERT INTO {states} (period, dimensions, start, key1, key2, total) "  # noqa: S608
            f"VALUES ('state', '{state}', 0, '{period}', '', ({total}))"
        )
