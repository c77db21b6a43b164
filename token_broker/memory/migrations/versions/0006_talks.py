"""The newest talk of each session, and when it is over: so that every replica knows which talks go on."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Adds both columns, which are empty until a talk of the session begins."""
    op.add_column("sessions", sa.Column("talk_id", sa.Text))
    op.add_column("sessions", sa.Column("talk_over_at_us", sa.BigInteger))
