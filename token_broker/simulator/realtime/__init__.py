"""The realtime APIs: a talk as a state machine without I/O, the dialects it speaks, and the sockets it is held over."""
