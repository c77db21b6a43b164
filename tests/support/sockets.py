"""Loopback peers that no HTTP server would be: sockets that listen, refuse, or stay silent."""

import contextlib
import socket
from collections.abc import Iterator

__all__ = ["free_port", "listening_socket", "refused_port"]


@contextlib.contextmanager
def listening_socket() -> Iterator[socket.socket]:
    """A bound socket on a free port of loopback, named as TCP so that asyncio switches Nagle's algorithm off."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    with contextlib.closing(listener):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        yield listener


@contextlib.contextmanager
def refused_port() -> Iterator[int]:
    """A port that refuses connections while the block lasts: bound, so that nobody else gets it, and not listening."""
    with listening_socket() as bound:
        yield bound.getsockname()[1]


def free_port() -> int:
    """A port for a process that can't be told to choose one itself. Nothing keeps it from others meanwhile."""
    with listening_socket() as free:
        port: int = free.getsockname()[1]
        return port
