"""Sound and what is heard in it."""
