"""The sockets towards Azure."""
