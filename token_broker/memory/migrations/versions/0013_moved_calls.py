"""What keeps a call at its replica, and how much of the time that Azure bills was counted of one that has moved."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Adds both columns."""
    op.add_column("calls", sa.Column("engaged_until_us", sa.BigInteger))
    op.add_column("usage_answers", sa.Column("billed_ms", sa.BigInteger))
