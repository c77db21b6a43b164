"""SQLite's full text is filled behind the commits, merged in small steps, and knows a turn by its session alone."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

SQLITE_SEARCH = (
    "DROP TRIGGER turns_worded",
    "DROP TRIGGER turns_unworded",
    "DROP TABLE turn_words",
    "CREATE VIRTUAL TABLE turn_words USING fts5(owner, content, content='')",
    "INSERT INTO turn_words (turn_words, rank) VALUES ('automerge', 0)",
    "INSERT INTO turn_words (turn_words, rank) VALUES ('crisismerge', 500)",
    """CREATE TRIGGER turns_unworded AFTER DELETE ON turns
        WHEN EXISTS (SELECT 1 FROM turn_words WHERE rowid = old.arrival) BEGIN
        INSERT INTO turn_words (turn_words, rowid, owner, content)
        VALUES ('delete', old.arrival, 's' || hex(old.session_id), old.content);
    END""",
)


def upgrade() -> None:
    """What is stored is indexed anew, once the broker runs. PostgreSQL's index stays as it is."""
    if op.get_bind().dialect.name == "sqlite":
        for statement in SQLITE_SEARCH:
            op.execute(sa.text(statement))
