"""GA and preview: events, items, settings and values in either dialect. Pure."""
