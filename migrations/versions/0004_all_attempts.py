"""The view `all_attempts`: the rows of `attempts`, and the only attempt of a call, which the row of the call tells.

A row with `sent_ms` stands for its only attempt too, unless that has a row. Of a finished call, an attempt in flight is
older than the call. As in 0001, what MariaDB and MySQL may have left half done can be done again.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_ADDED = {"provider_model": sa.String(255), "sent_ms": sa.BigInteger()}
_MILLISECONDS = "(CAST(substr(timestamp, 21, 3) AS INTEGER) + sent_ms)"
_SENT = {  # by hand in SQLite, whose older versions cut what is not whole in binary
    "sqlite": f"strftime('%Y-%m-%dT%H:%M:%S', substr(timestamp, 1, 19), ({_MILLISECONDS} / 1000) || ' seconds')"
    f" || printf('.%03dZ', {_MILLISECONDS} % 1000)",
    "postgresql": "CAST(timestamp + sent_ms * INTERVAL '1 millisecond' AS TIMESTAMP(3) WITH TIME ZONE)",
    "mysql": "CAST(timestamp + INTERVAL (sent_ms * 1000) MICROSECOND AS DATETIME(3))",
}
# The row `a` of an attempt is older than that of its call.
_OLDER = "(a.revision = 0 AND r.sent_ms IS NOT NULL AND r.end_reason NOT IN ('in_flight', 'abandoned'))"
_ABANDONED = "end_reason = 'abandoned'"
_UNCOUNTED = "end_reason <> 'in_flight' AND usage_source IN ('none', 'estimated') AND error_status IS NULL"


def upgrade() -> None:
    """Add the columns, and make the view."""
    names = context.config.attributes
    table = names["table"]
    repeatable = _dialect() == "mysql" and not context.is_offline_mode()
    there = {str(found["name"]) for found in sa.inspect(op.get_bind()).get_columns(table)} if repeatable else set()
    for name, kind in _ADDED.items():
        if name not in there:
            op.add_column(table, sa.Column(name, kind))
    create = "CREATE OR REPLACE SQL SECURITY INVOKER VIEW" if _dialect() == "mysql" else "CREATE VIEW"
    op.execute(f"{create} {_quote(names['all_attempts_view'])} AS {_query(table, names['attempts_table'])}")


def downgrade() -> None:
    """Write the attempts that rows tell into `attempts`, and drop what was added."""
    names = context.config.attributes
    table, attempts, view = (_quote(names[name]) for name in ("table", "attempts_table", "all_attempts_view"))
    columns = ", ".join(map(_quote, _facts()))
    of_call = f"SELECT 1 FROM {table} r WHERE r.correlation_id = {attempts}.correlation_id"  # noqa: S608
    op.execute(f"DELETE FROM {attempts} WHERE EXISTS ({of_call} AND {_OLDER.replace('a.', f'{attempts}.')})")  # noqa: S608
    op.execute(f"INSERT INTO {attempts} ({columns}) {_told(names['table'], names['attempts_table'])}")
    op.execute(f"DROP VIEW {view}")
    for name in _ADDED:
        op.drop_column(names["table"], name)


def _query(table: str, attempts: str) -> str:
    kept = ", ".join(f"a.{_quote(name)}" for name in _facts())
    of_call = f"SELECT 1 FROM {_quote(table)} r WHERE r.correlation_id = a.correlation_id"  # noqa: S608
    rows = f"SELECT {kept} FROM {_quote(attempts)} a WHERE NOT EXISTS ({of_call} AND {_OLDER})"  # noqa: S608
    return f"{rows} UNION ALL {_told(table, attempts)}"


def _told(table: str, attempts: str) -> str:
    facts = ", ".join(f"{fact} AS {_quote(name)}" for name, fact in _facts().items())
    row = f"SELECT 1 FROM {_quote(attempts)} a WHERE a.correlation_id = r.correlation_id AND NOT {_OLDER}"  # noqa: S608
    return f"SELECT {facts} FROM {_quote(table)} r WHERE sent_ms IS NOT NULL AND NOT EXISTS ({row})"  # noqa: S608


def _facts() -> dict[str, str]:
    """The columns of an attempt, as the row of its call tells them."""
    said = "CASE WHEN usage_source <> 'estimated' THEN {} END"
    return {
        "correlation_id": "correlation_id",
        "number": "1",
        "provider": "provider",
        "timestamp": _SENT[_dialect()],
        "model": "coalesce(provider_model, model)",
        "status": "coalesce(error_status, 200)",
        "latency_ms": "latency_ms - sent_ms",
        **{name: said.format(name) for name in ("input_tokens", "output_tokens", "cost_sats")},
        "maybe_billed": f"{_ABANDONED} OR ({_UNCOUNTED})",
        "error_message": "error_message",
        "revision": "revision - CASE WHEN usage_source = 'estimated' THEN 1 ELSE 0 END",
    }


def _dialect() -> str:
    name = context.get_context().dialect.name
    return "mysql" if name == "mariadb" else name


def _quote(name: str) -> str:
    return str(op.get_context().dialect.identifier_preparer.quote(name))
