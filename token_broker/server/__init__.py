"""Everything that leans on uvicorn: HTTP and WebSocket protocols, frames, draining, close codes."""
