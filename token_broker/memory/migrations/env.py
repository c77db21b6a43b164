"""Alembic's entry: runs the migrations on the connection that `store/tables.py` passes."""

from alembic import context

from token_broker.memory.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
