"""What the broker costs, measured beside a peer in the same run; `scripts/bench` runs it."""
