"""Since when a call's holder does not hear it: if both end, who takes the call counts its time until then."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Adds the column."""
    op.add_column("calls", sa.Column("unheard_since_us", sa.BigInteger))
