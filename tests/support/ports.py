"""Ports of 127.0.0.1 for servers that must be told theirs."""

import contextlib
import socket


def free_ports(count):
    """So many that nobody uses."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
