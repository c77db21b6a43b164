"""The memory: turns are stored durably and once, delivered in order, and found again."""
