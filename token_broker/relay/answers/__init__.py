"""Answers and tool calls: one sequencer a talk decides when Azure is asked for an answer, and what becomes of calls."""
