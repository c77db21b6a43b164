"""Alembic's migrations; `schema.py` runs them when the store opens."""
