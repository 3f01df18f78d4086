"""Addresses that servers listen on."""

import socket

from pipeline.core.errors import UserError


def open_listener(host: str, port: int) -> socket.socket:
    """Bind a socket to an address, before anything slow is done; port 0 is a free one.

    Raises:
        UserError: The host is no address of this machine, or the port is taken or none.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # With the protocol named, asyncio switches Nagle's algorithm off; else a small answer waits 40 ms for an ACK.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port) if not 0 <= port < 2**16 else address)  # getaddrinfo takes 70000 for 4464
    except socket.gaierror:
        raise UserError(f"--host {host} is no address of this machine.") from None
    except (OSError, OverflowError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).rstrip(".")
        raise UserError(f"port {port} on {host} can't be had: {reason}. Choose another with --port.") from None
    listener.set_inheritable(True)
    return listener
