"""Addresses of other processes, looked at before a library waits there without a word of ours."""

import errno
import os
import socket
import time


def host_and_port(address: str) -> tuple[str, int] | None:
    """The parts of ``HOST:PORT``; None of any other text.

    >>> host_and_port("node7:6379"), host_and_port("auto")
    (('node7', 6379), None)
    """
    host, colon, port = address.rpartition(":")
    if host and colon and port.isdigit() and 0 < int(port) < 2**16:
        return host, int(port)
    return None


def wait_for(host: str, port: int, seconds: float, who: str) -> None:
    """Until somebody listens there.

    Raises:
      ValueError: nobody has for so many seconds; ``who`` it should have been goes into the error.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=seconds).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise ValueError(
                    f"{who} answers at {host}:{port} within {seconds} s ({error.strerror or error})"
                ) from None
        time.sleep(0.1)


def check_free(port: int, option: str) -> None:
    """Refuses a port at which this process cannot listen.

    Raises:
      ValueError: it is in use, or not for this user; ``option`` named it.
    """
    both = socket.has_dualstack_ipv6()
    with socket.socket(socket.AF_INET6 if both else socket.AF_INET) as probe:
        if both:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if os.name == "posix":  # one that was in use a moment ago is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            used = error.errno == errno.EADDRINUSE
            why = "is in use" if used else f"cannot be listened at ({error.strerror})"
            raise ValueError(f"{option}: port {port} of this machine {why}; take another") from None
