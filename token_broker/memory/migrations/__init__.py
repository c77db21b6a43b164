"""Alembic's migrations; `store/tables.py` runs them when the store opens."""
