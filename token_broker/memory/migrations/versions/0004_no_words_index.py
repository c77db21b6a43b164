"""PostgreSQL searches a user's own turns and nobody else's, for which it never took the index of everybody's words."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """The index was the dearest part of storing a turn. SQLite's full text stays as it is."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(sa.text("DROP INDEX IF EXISTS turns_words"))
