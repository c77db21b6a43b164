"""What the simulated agents of the demo say, and the synthetic voice in which they say it."""
