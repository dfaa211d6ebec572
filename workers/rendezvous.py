"""Where the ranks of a gang meet: a free port on an address of this node, and the interface that carries it."""

import errno
import hashlib
import socket
from collections.abc import Collection

import psutil

FIRST_PORT = 20_000
LAST_PORT = 32_767
"""Below the ephemeral range of Linux, 32768 to 60999, so that no outgoing connection takes a port before rank 0."""

LOOPBACK = "127.0.0.1"
NO_SUCH_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


class NoFreePort(RuntimeError):
    """Every port from FIRST_PORT to LAST_PORT is taken."""


def choose_port(attempt: str, taken: Collection[int]) -> int:
    """A port nobody on this machine listens on. The search starts at a place that follows from the attempt, so that
    agents on one machine rarely choose the same; `taken` are ports promised to ranks that may not listen yet.

    Raises:
        NoFreePort: there is none.
    """
    count = LAST_PORT - FIRST_PORT + 1
    start = int.from_bytes(hashlib.sha256(attempt.encode()).digest()[:8], "big")
    for step in range(count):
        port = FIRST_PORT + (start + step) % count
        if port not in taken and _is_free(port):
            return port
    raise NoFreePort(f"every port from {FIRST_PORT} to {LAST_PORT} is taken on this node")


def interface_of(address: str) -> str | None:
    """The name of the network interface that carries `address` (a number or a host name), or None."""
    try:
        numbers = {found[4][0] for found in socket.getaddrinfo(address, None)}
    except OSError:
        return None
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address.split("%")[0] in numbers for entry in entries):
            return name
    return None


def address_on(interface: str) -> str:
    """The address of a network interface of this machine: its first IPv4 number, else its first IPv6 number.

    Raises:
        ValueError: there is no such interface, or it has no address; with the names that there are.
    """
    present = psutil.net_if_addrs()
    for family in (socket.AF_INET, socket.AF_INET6):
        for entry in present.get(interface, ()):
            if entry.family == family:
                return entry.address.split("%")[0]
    raise ValueError(f"no interface {interface!r} with an address here; there are {', '.join(sorted(present))}")


def local_address_towards(host: str, port: int) -> str:
    """The address this machine uses when it talks to `host`. Sends nothing.

    Raises:
        OSError: the host is unknown or unreachable.
    """
    family, kind, _protocol, _name, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])


def join_address(address: str, port: int) -> str:
    """`address:port`, with brackets around an IPv6 number."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def split_address(text: str) -> tuple[str, int]:
    """The two parts of what `join_address` made."""
    address, _colon, port = text.rpartition(":")
    return address.strip("[]"), int(port)


def _is_free(port: int) -> bool:
    """Listening on every address at once needs the port free on each."""
    for family in (socket.AF_INET6, socket.AF_INET):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(("", port))
        except OSError as error:
            if error.errno in NO_SUCH_FAMILY:
                continue
            return False
    return True
