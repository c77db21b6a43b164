"""Alembic's migrations; `store/migrate.py` runs them when the store opens."""
