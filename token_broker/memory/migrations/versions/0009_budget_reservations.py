"""What talks have used and hold of their principals' budgets, by UTC day."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Makes the table."""
    op.create_table(
        "budget_reservations",
        sa.Column("bucket", sa.SmallInteger, nullable=False),
        sa.Column("budget_key", sa.Text, nullable=False),
        sa.Column("day", sa.Integer, nullable=False),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("used_ms", sa.BigInteger, nullable=False),
        sa.Column("held_ms", sa.BigInteger, nullable=False),
        sa.Column("used_tokens", sa.BigInteger, nullable=False),
        sa.Column("held_tokens", sa.BigInteger, nullable=False),
        sa.Column("until_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("bucket", "budget_key", "day", "holder"),
    )
    op.create_index("budget_reservations_by_day", "budget_reservations", ["day"])
