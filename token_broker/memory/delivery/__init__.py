"""Turns on their way to a sink, and the sinks."""
