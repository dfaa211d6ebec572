"""Machines, as far as one can play them on one: network namespaces on a bridge. Needs root and the command `ip`."""

import contextlib
import os
import subprocess
from collections.abc import Iterator


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Bridge:
    """A network of this process's own. `address` is ours in it."""

    def __init__(self) -> None:
        self.name = f"ergb{os.getpid() % 100_000}"
        self.network = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
        self.address = f"{self.network}.1"

    @contextlib.contextmanager
    def machine(self, number: int) -> Iterator[str]:
        """A network namespace with one address, `network.1<number>`, on a wire to the bridge; its name."""
        name, wire = f"{self.name}-{number}", self.wire(number)
        run("ip", "netns", "add", name)
        try:
            run("ip", "link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", name)
            run("ip", "link", "set", wire, "master", self.name, "up")
            run("ip", "-n", name, "address", "add", f"{self.network}.1{number}/24", "dev", "eth0")
            for interface in ("lo", "eth0"):
                run("ip", "-n", name, "link", "set", interface, "up")
            yield name
        finally:
            run("ip", "netns", "delete", name)  # its end of the wire goes with it, and so does the other

    def wire(self, number: int) -> str:
        """The interface on our side; while it is down, the machine reaches nobody."""
        return f"{self.name}v{number}"


@contextlib.contextmanager
def bridge() -> Iterator[Bridge]:
    """Raises CalledProcessError where no network interfaces can be made."""
    made = Bridge()
    run("ip", "link", "add", made.name, "type", "bridge")
    try:
        run("ip", "address", "add", f"{made.address}/24", "dev", made.name)
        run("ip", "link", "set", made.name, "up")
        yield made
    finally:
        run("ip", "link", "delete", made.name)
