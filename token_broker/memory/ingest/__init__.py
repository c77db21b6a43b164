"""Turns on their way into the store."""
