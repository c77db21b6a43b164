"""What the proxy costs, beside nginx proxying the same WebSockets in the same run."""
