"""${message}

Revision ${up_revision}, after ${down_revision | comma,n}, ${create_date}.

Within a major version: nullable columns only, one DDL statement that can be repeated (MySQL commits each by itself).
"""

import sqlalchemy as sa
from alembic import context, op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    """${message}"""
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    """Back."""
    ${downgrades if downgrades else "pass"}
