"""Alembic's way in: `netctl.broker.store` hands over its open connection."""

from alembic import context

connection = context.config.attributes["connection"]
# SQLite cannot alter most of a table; batch mode copies it instead.
context.configure(connection=connection, render_as_batch=True, transactional_ddl=True)
with connection.begin(), context.begin_transaction():
    context.run_migrations()
