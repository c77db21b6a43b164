"""Faults that are set while the simulator runs."""
