"""The folded words of turns, for recall on both databases; SQLite's full text goes."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0004"


def upgrade() -> None:
    """Makes the table. Turns that are stored get their words later, in small steps beside the commits."""
    op.create_table(
        "turn_words",
        sa.Column("bucket", sa.SmallInteger, nullable=False),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("arrival", sa.BigInteger, nullable=False),
        sa.Column("words", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("bucket", "session_id", "arrival"),
        sqlite_with_rowid=False,
    )
    op.add_column("turns", sa.Column("folding", sa.SmallInteger))
    unfolded = sa.text("folding IS NULL")
    op.create_index("turns_unfolded", "turns", ["arrival"], sqlite_where=unfolded, postgresql_where=unfolded)
    if op.get_bind().dialect.name == "sqlite":
        op.execute(sa.text("DROP TRIGGER turns_fts_delete"))
        op.execute(sa.text("DROP TABLE turns_fts"))
