"""Loopback sockets below HTTP: one that is bound, and one that refuses connections."""

import contextlib
import socket
from collections.abc import Iterator

__all__ = ["free_port", "listening_socket", "refused_port"]


@contextlib.contextmanager
def listening_socket(port: int = 0) -> Iterator[socket.socket]:
    """A bound socket of loopback, on a free port unless told; TCP by name, since else asyncio leaves Nagle on."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    with contextlib.closing(listener):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        yield listener


@contextlib.contextmanager
def refused_port() -> Iterator[int]:
    """A port that refuses connections until the block ends: bound, so that nobody else gets it, and not listening."""
    with listening_socket() as bound:
        yield bound.getsockname()[1]


def free_port() -> int:
    """A port for a process that can't be told to choose one itself. Nothing keeps it from others meanwhile."""
    with listening_socket() as free:
        port: int = free.getsockname()[1]
        return port
