"""Alembic's entry: `arbstr_asgi.database.migrations` runs it, and says through attributes where and on what."""

from alembic import context

config = context.config

if context.is_offline_mode():
    context.configure(
        dialect_name=config.attributes["dialect"],
        version_table=config.attributes["version_table"],
        literal_binds=True,
    )
else:
    context.configure(
        connection=config.attributes["connection"],
        version_table=config.attributes["version_table"],
    )

with context.begin_transaction():
    context.run_migrations()
