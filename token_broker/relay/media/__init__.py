"""Talks by WebRTC whose signalling and events go over the broker's WebSocket, and over Azure's control socket."""
