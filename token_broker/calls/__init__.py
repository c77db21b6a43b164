"""WebRTC calls that the broker set up: made, joined, held by a lease, and ended."""
