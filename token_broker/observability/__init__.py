"""Logs, metrics, traces, and the events that feed them."""
