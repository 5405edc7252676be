"""The table `requests`, one row for each call.

MariaDB and MySQL commit every DDL statement by itself, so a process that is killed half way leaves a table without a
version. There the statements are written to be repeated: the table only if it isn't there, the index only if it has
none. Whose table it is was settled before (`arbstr_asgi.database.schema`): without an empty version table of ours
beside it and exactly these columns, nothing of this runs.
"""

from typing import Any

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects import mysql, postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # only INTEGER is an alias of SQLite's rowid
_CALL = sa.String(36).with_variant(mysql.VARCHAR(36, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
_MOMENT = (
    sa.DateTime(timezone=True)
    .with_variant(postgresql.TIMESTAMP(timezone=True, precision=3), "postgresql")
    .with_variant(mysql.DATETIME(fsp=3), "mysql", "mariadb")
    .with_variant(sa.Text(), "sqlite")
)
_MONEY = sa.Numeric(24, 9).with_variant(sa.Text(), "sqlite")  # NUMERIC is a float in SQLite
_DOCUMENT = sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")


def upgrade() -> None:
    """Make the table and its indexes."""
    table = context.config.attributes["table"]
    repeatable = context.get_context().dialect.name in {"mysql", "mariadb"} and not context.is_offline_mode()
    op.create_table(
        table,
        *_columns(),
        sa.UniqueConstraint("correlation_id", name=f"uq_{table}_correlation_id"),
        mysql_collate="utf8mb4_bin",  # others take 'gpt-4o' and 'GPT-4o' for the same model
        mysql_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mariadb_charset="utf8mb4",
        if_not_exists=repeatable or None,
    )
    there = {found["name"] for found in sa.inspect(op.get_bind()).get_indexes(table)} if repeatable else set()
    # The calls that a dead process has left open are looked for at each start; there are few at any time.
    few = sa.text("end_reason = 'in_flight'")
    for name, column, where in (("timestamp", "timestamp", None), ("in_flight", "end_reason", few)):
        index = f"ix_{table}_{name}"
        if index not in there:
            op.create_index(index, table, [column], sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    """Drop the table, rows and all."""
    op.drop_table(context.config.attributes["table"])


def _columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("id", _KEY, primary_key=True, autoincrement=True),
        sa.Column("correlation_id", _CALL, nullable=False),
        sa.Column("timestamp", _MOMENT, nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("provider", sa.String(255)),
        sa.Column("policy", sa.String(255)),
        sa.Column("streaming", sa.Boolean(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger()),
        sa.Column("output_tokens", sa.BigInteger()),
        sa.Column("cost_sats", _MONEY),
        sa.Column("provider_cost_sats", _MONEY),
        sa.Column("latency_ms", sa.BigInteger()),
        sa.Column("stream_duration_ms", sa.BigInteger()),
        sa.Column("success", sa.Boolean(), nullable=False),
        sa.Column("error_status", sa.BigInteger()),
        sa.Column("error_message", sa.String(500)),
        sa.Column("complexity_score", sa.Double()),
        sa.Column("tier", sa.String(255)),
        sa.Column("end_user", sa.String(255)),
        sa.Column("tenant", sa.String(255)),
        sa.Column("tags", _DOCUMENT),
        sa.Column("response_model", sa.String(255)),
        sa.Column("response_id", sa.String(255)),
        sa.Column("finish_reason", sa.String(255)),
        sa.Column("service_tier", sa.String(255)),
        sa.Column("total_tokens", sa.BigInteger()),
        sa.Column("cached_tokens", sa.BigInteger()),
        sa.Column("cache_write_tokens", sa.BigInteger()),
        sa.Column("reasoning_tokens", sa.BigInteger()),
        sa.Column("usage_json", _DOCUMENT),
        sa.Column("usage_source", sa.String(32), nullable=False),
        sa.Column("end_reason", sa.String(32), nullable=False),
        sa.Column("disconnect", sa.String(32)),
        sa.Column("provider_cost_usd", _MONEY),
        sa.Column("ttft_ms", sa.BigInteger()),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("worker_id", sa.String(64)),
        sa.Column("revision", sa.BigInteger(), nullable=False),
    ]
