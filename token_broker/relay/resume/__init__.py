"""A talk that goes on at another session of Azure's: what is open in it, and how the new session gets it."""
