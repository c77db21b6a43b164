"""What pages tell the broker about their talks."""
