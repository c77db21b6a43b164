"""HTTP in general: problems, requests, origins, OpenAPI."""
