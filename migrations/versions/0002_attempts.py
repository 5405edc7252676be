"""The table `attempts`, one row for each request to a provider, of which a call may take several.

As in 0001, what MariaDB and MySQL may have left half done can be done again.
"""

from typing import Any

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects import mysql, postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_CALL = sa.String(36).with_variant(mysql.VARCHAR(36, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
_MOMENT = (
    sa.DateTime(timezone=True)
    .with_variant(postgresql.TIMESTAMP(timezone=True, precision=3), "postgresql")
    .with_variant(mysql.DATETIME(fsp=3), "mysql", "mariadb")
    .with_variant(sa.Text(), "sqlite")
)
_MONEY = sa.Numeric(24, 9).with_variant(sa.Text(), "sqlite")


def upgrade() -> None:
    """Make the table."""
    table = context.config.attributes["attempts_table"]
    repeatable = context.get_context().dialect.name in {"mysql", "mariadb"} and not context.is_offline_mode()
    op.create_table(
        table,
        *_columns(),
        sa.UniqueConstraint("correlation_id", "number", name=f"uq_{table}_number"),
        mysql_collate="utf8mb4_bin",
        mysql_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mariadb_charset="utf8mb4",
        if_not_exists=repeatable or None,
    )


def downgrade() -> None:
    """Drop the table, rows and all."""
    op.drop_table(context.config.attributes["attempts_table"])


def _columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("id", _KEY, primary_key=True, autoincrement=True),
        sa.Column("correlation_id", _CALL, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("provider", sa.String(255), nullable=False),
        sa.Column("timestamp", _MOMENT, nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("status", sa.BigInteger()),
        sa.Column("latency_ms", sa.BigInteger()),
        sa.Column("input_tokens", sa.BigInteger()),
        sa.Column("output_tokens", sa.BigInteger()),
        sa.Column("cost_sats", _MONEY),
        sa.Column("maybe_billed", sa.Boolean(), nullable=False),
        sa.Column("error_message", sa.String(500)),
        sa.Column("revision", sa.BigInteger(), nullable=False),
    ]
