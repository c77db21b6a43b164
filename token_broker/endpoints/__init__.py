"""HTTP in: one small module a resource."""
