"""The history of the broker's schema, as Alembic runs it."""
