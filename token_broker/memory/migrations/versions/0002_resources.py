"""Azure resources that the operator has disabled, and the replicas that share their quotas."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Makes both tables."""
    op.create_table(
        "disabled_resources",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("since_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "replicas",
        sa.Column("replica_id", sa.Text, nullable=False),
        sa.Column("seen_at_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("replica_id"),
    )
