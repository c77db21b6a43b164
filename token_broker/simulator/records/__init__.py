"""What a simulator remembers: the requests that it got, and what its talks said."""
