"""Programs that the preparation of an attempt runs to their end. Standard library only."""

import subprocess
import sys
from collections import deque
from collections.abc import Mapping

LAST_LINES = 8


class CommandFailed(Exception):
    """A program ended with another code than 0, or could not be started. `last` are the last lines it wrote."""

    def __init__(self, message: str, last: list[str]) -> None:
        super().__init__(message)
        self.last = last


def run(command: list[str], *, env: Mapping[str, str], cwd: str, shown: bool = True) -> str:
    """Run to the end and give the output, which goes to the job's log as it comes if `shown`.

    Raises:
        CommandFailed: see there.
    """
    last: deque[str] = deque(maxlen=LAST_LINES)
    written: list[str] = []
    try:
        with subprocess.Popen(
            command,
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if shown else None,
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                last.append(line.strip())
                written.append(line)
                if shown:
                    sys.stderr.write(line)
                    sys.stderr.flush()
    except OSError as error:
        raise CommandFailed(f"`{command[0]}` cannot be started: {error.strerror}", []) from error
    if process.returncode != 0:
        raise CommandFailed(f"`{' '.join(command[:4])} ...` failed: {' | '.join(last)}", list(last))
    return "".join(written)
