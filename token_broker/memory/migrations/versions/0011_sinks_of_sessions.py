"""Which sinks a session's turns went to, so that an erasure names those that were taken out since."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

_BITS = {"zep": 1, "zep_cloud": 2, "http": 4}
_TRACES = ("outbox", "notices", "dead_letters", "erasures", "sink_ids")


def upgrade() -> None:
    """Adds the column. Turns that were delivered leave no trace: older sessions get the sinks that left any here."""
    op.add_column("sessions", sa.Column("sinks", sa.SmallInteger, nullable=False, server_default=sa.text("0")))
    found = op.get_bind().scalars(sa.text(" UNION ".join(f"SELECT sink FROM {table}" for table in _TRACES)))  # noqa: S608
    if bits := sum(_BITS.get(sink, 0) for sink in found):
        op.execute(sa.text("UPDATE sessions SET sinks = :bits WHERE principal <> ''").bindparams(bits=bits))
