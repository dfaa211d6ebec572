"""Agents of a local cluster that are stopped and started as machines would be switched off and on.

`ergon up` listens on a socket in its data folder. The hook that its service runs is a small process that asks there:
`python -P -m ergon.cli.switch DATA_DIR on|off NODE`.
"""

import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from ergon.cli.output import note
from ergon.cli.processes import Child, Family, ProcessFailed

SOCKET = "switch.sock"
DONE = "done"
ASKING_S = 5.0
"""Whoever connects asks at once."""
ANSWER_S = 55.0
"""Longer than an agent gets to stop."""
READY_S = 60.0


class Switchboard:
    """Stops and starts the agents whose commands it is given, when asked over its socket.

    Leaving the `with` block closes the socket; agents are stopped by their family.
    """

    def __init__(
        self, folder: Path, family: Family, commands: Mapping[str, Sequence[str]], agents: Sequence[Child]
    ) -> None:
        self._path = folder / SOCKET
        self._family = family
        self._commands = commands
        self._running = {agent.name: agent for agent in agents}
        self._path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with _short(folder) as short:
            self._socket.bind(short)
        self._socket.listen()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def fileno(self) -> int:
        """A descriptor that is readable once somebody asks."""
        return self._socket.fileno()

    def answer(self) -> None:
        """Do what is asked, and say so."""
        caller, _ = self._socket.accept()
        with caller, contextlib.suppress(OSError):  # a hook that was killed meanwhile
            caller.settimeout(ASKING_S)
            word, _, name = caller.makefile("r", encoding="utf-8").readline().strip().partition(" ")
            caller.sendall(self._switch(word, name).encode())

    def _switch(self, word: str, name: str) -> str:
        if name not in self._commands or word not in ("on", "off"):
            return f"there is no {word!r} for an agent {name!r}; there are {', '.join(self._commands)}"
        if word == "off" and (agent := self._running.pop(name, None)) is not None:
            self._family.stop(agent)
        elif word == "on" and name not in self._running:
            [agent] = self._family.start({name: self._commands[name]})
            self._running[name] = agent
            try:
                agent.wait_ready(READY_S)
            except ProcessFailed as failure:
                self._family.stop(self._running.pop(name))
                return str(failure)
        return DONE


def write_pools(path: Path, folder: Path, *, idle_s: float) -> None:
    """Write the pool of a local cluster in `folder`: agents that are idle for `idle_s` go, and come within seconds."""
    command = [sys.executable, "-P", "-m", "ergon.cli.switch", str(folder)]
    words = {word: [part.replace("{", "{{").replace("}", "}}") for part in command] for word in ("on", "off")}
    lines = [f"{word} = {json.dumps([*begin, word, '{name}'], ensure_ascii=False)}" for word, begin in words.items()]
    values = {"idle_s": idle_s, "min_on_s": 0, "boot_s": 5, "boot_limit_s": 120, "boots_per_hour": 1_000}
    lines += [f"{name} = {value}" for name, value in values.items()]
    path.write_text("\n".join(["[pools.local]", 'nodes = ["*"]', *lines, ""]), encoding="utf-8")


def ask(folder: Path, word: str, name: str) -> str:
    """What the cluster in `folder` answers to the word `on` or `off` for a node. Raises OSError if it is not there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller, _short(folder) as short:
        caller.settimeout(ANSWER_S)
        caller.connect(short)
        caller.sendall(f"{word} {name}\n".encode())
        return caller.makefile("r", encoding="utf-8").read()


@contextlib.contextmanager
def _short(folder: Path) -> Iterator[str]:
    """The socket's path by way of a descriptor: the kernel takes 107 bytes at most."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)


def main(arguments: Sequence[str]) -> int:
    """The hook; its exit code."""
    folder, word, name = arguments
    try:
        said = ask(Path(folder), word, name)
    except OSError as error:
        said = f"no local cluster answers in {folder}: {error.strerror or error}"
    if said != DONE:
        note(said)
    return int(said != DONE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
