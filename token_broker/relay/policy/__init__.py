"""What may pass between a client and Azure. Pure."""
