"""What the broker posts to its operator's own servers: signed, bounded, and never to an address of the cloud's own."""
