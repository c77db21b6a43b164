"""The compatible endpoints of the official clients, over real sockets: the broker in front, the simulator behind."""
