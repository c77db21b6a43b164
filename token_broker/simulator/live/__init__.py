"""GPT-Live: sessions without turns, over a WebSocket or WebRTC, with a sideband (docs/azure.md §12.3)."""
