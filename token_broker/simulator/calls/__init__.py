"""WebRTC calls of every API that the simulator has: those that are open, and those that a WebSocket signals."""
