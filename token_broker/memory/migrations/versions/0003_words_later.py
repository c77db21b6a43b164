"""SQLite's full text is filled behind the commits: no trigger fills it, and one empties it of what it holds."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

SQLITE_SEARCH = (
    "DROP TRIGGER turns_worded",
    "DROP TRIGGER turns_unworded",
    """CREATE TRIGGER turns_unworded AFTER DELETE ON turns
        WHEN EXISTS (SELECT 1 FROM turn_words WHERE rowid = old.arrival) BEGIN
        INSERT INTO turn_words (turn_words, rowid, owner, content)
        SELECT 'delete', old.arrival, 's' || hex(s.session_id) || ' p' || hex(s.principal), old.content
        FROM sessions s WHERE s.bucket = old.bucket AND s.session_id = old.session_id;
    END""",
)


def upgrade() -> None:
    """PostgreSQL's index is its own affair, as before."""
    if op.get_bind().dialect.name == "sqlite":
        for statement in SQLITE_SEARCH:
            op.execute(sa.text(statement))
