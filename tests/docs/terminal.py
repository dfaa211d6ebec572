"""A shell that stays, as in a terminal: what one command sets, the next one finds."""

import contextlib
import os
import secrets
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

LONGEST_S = 300.0
"""No command of the documentation takes longer, on a very busy machine either."""
STOP_S = 60.0


class Terminal:
    """Bash with its own process group. `prefix` is a command that runs it elsewhere, as in a network namespace."""

    def __init__(self, folder: Path, environment: Mapping[str, str], prefix: Sequence[str] = ()) -> None:
        self._mark = f"end-{secrets.token_hex(8)}"
        self._status = 0
        self._process = subprocess.Popen(
            [*prefix, "bash", "--noprofile", "--norc"],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._send("trap : INT\n")  # Ctrl-C ends what runs in the shell, and not the shell

    def run(self, text: str, script: Path) -> tuple[int, str]:
        """Run `text`, by way of the file `script`; the exit code of the first command of it that fails, and what was
        printed.

        Raises TimeoutError.
        """
        self._type(text, script)
        printed = self._read(lambda printed: f"\n{self._mark} " in printed and printed.endswith("\n"))
        output, _, numbers = printed.rpartition(f"\n{self._mark} ")
        status, *failed = map(int, numbers.split())
        first_failure = next(iter(failed[self._status != 0 :]), status)
        self._status = status
        return first_failure, output

    def start(self, text: str, script: Path, ready: Callable[[str], bool]) -> None:
        """Run a command that stays, and return when it has printed what makes it ready.

        Raises TimeoutError, or RuntimeError if it ends instead.
        """
        self._type(text, script)
        printed = self._read(lambda printed: self._mark in printed or ready(printed))
        if self._mark in printed:
            raise RuntimeError(f"it should have stayed, and ended with:\n{printed}")

    def interrupt(self) -> None:
        """Ctrl-C; return when the command that stayed has ended. Raises TimeoutError if it does not."""
        os.killpg(self._process.pid, signal.SIGINT)
        self._read(lambda printed: f"\n{self._mark} " in printed and printed.endswith("\n"))

    def close(self) -> None:
        """End whatever runs. Raises subprocess.TimeoutExpired if it does not end when asked to."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGINT)
        try:
            self._process.communicate(timeout=STOP_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _type(self, text: str, script: Path) -> None:
        script.write_text(text)
        # The last status is put back first, for pages that show `echo $?`; the trap notes it as well if it is not 0.
        self._send(
            f"failed=; trap 'failed=\"$failed $?\"' ERR; (exit {self._status}); . {script} </dev/null; "
            f"status=$?; trap - ERR; printf '\\n%s %s %s\\n' {self._mark} $status \"$failed\"\n"
        )

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode())
        self._process.stdin.flush()

    def _read(self, enough: Callable[[str], bool]) -> str:
        assert self._process.stdout is not None
        deadline = time.monotonic() + LONGEST_S
        printed = b""
        while not enough(text := printed.decode("utf-8", "replace")):
            if not select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"it was not done after {LONGEST_S:g} s; so far it has printed:\n{text}")
            block = os.read(self._process.stdout.fileno(), 65_536)
            if not block:
                raise RuntimeError(f"the shell itself has ended; it had printed:\n{text}")
            printed += block
        return text
