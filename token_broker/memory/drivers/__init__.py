"""The databases: SQLite in threads, PostgreSQL over asyncpg."""
