"""The compatible endpoints for the `live` resource of the official clients: GPT-Live."""
