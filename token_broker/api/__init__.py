"""HTTP: one module a resource, which parses, calls and answers."""
