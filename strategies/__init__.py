"""Token strategies: each turns a request for a session into a grant."""
