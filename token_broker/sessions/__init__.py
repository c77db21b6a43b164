"""Who talks with whom: agents, ownership, plans, calls."""
