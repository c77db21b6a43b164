"""When a call was hung up at a replica that does not hold it: who holds it counts its time until then."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Adds the column."""
    op.add_column("calls", sa.Column("over_at_us", sa.BigInteger))
