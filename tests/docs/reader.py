"""Somebody who follows a page from top to bottom and believes every word of it."""

import contextlib
import itertools
import re
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.docs.blocks import CTRL_C, SECOND_MACHINE, SHELL, STAYS, Block, Command, blocks, commands
from tests.docs.machines import Machine
from tests.docs.matching import matches
from tests.docs.terminal import Terminal

FOR_THE_EXIT_CODE = "echo $?\n"
_TO_COPY = re.compile(r"(?<!\S)([a-z]+[-_](?:[a-z]+[-_])*)\.\.\.(?!\S)")
"""Such as `ergon_join_...`: what a person copies from above."""


class Reader:
    """On each machine one terminal is at hand. A command that stays keeps it, and another is taken; after Ctrl-C it is
    at hand again.
    """

    def __init__(self, scripts: Path, first: Machine, second: Machine | None = None) -> None:
        self._scripts = scripts
        self._machines = [first, second] if second else [first]
        self._terminals = [self._open(machine) for machine in self._machines]
        self._staying: list[list[Terminal]] = [[] for _ in self._machines]
        self._idle: list[list[Terminal]] = [[] for _ in self._machines]
        self._printed = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ctrl-C for whatever stays, the latest first."""
        with contextlib.ExitStack() as stack:
            for terminal in itertools.chain(self._terminals, *self._idle, *self._staying):
                stack.callback(terminal.close)

    def follow(self, page: Path) -> None:
        """Do everything that the page says. Raises AssertionError with the place where it is not true."""
        for block in blocks(page):
            if block.reason_not_run is None:
                self._do(block)

    def _do(self, block: Block) -> None:
        number = int(SECOND_MACHINE in block.notes)
        if CTRL_C in block.notes:
            terminal = self._staying[number].pop()
            terminal.interrupt()
            self._idle[number].append(self._terminals[number])
            self._terminals[number] = terminal
        if block.files_of:
            for file in blocks(block.files_of):
                self._write(file, number)
        if block.language in SHELL:
            self._type(block, number)
        elif block.file_name:
            self._write(block, number)
        elif block.language == "python":
            script = self._script(block)
            script.write_text(block.text)
            self._run(block, Command(f"python {script}\n", None), number)

    def _type(self, block: Block, number: int) -> None:
        typed = list(commands(block))
        for command, following in zip(typed, [*typed[1:], None], strict=True):
            if STAYS in block.notes and following is None:
                self._start(block, command, number)
            else:
                code_is_shown = following is not None and following.text == FOR_THE_EXIT_CODE
                self._run(block, command, number, any_exit_code=code_is_shown)

    def _run(self, block: Block, command: Command, number: int, *, any_exit_code: bool = False) -> None:
        status, printed = self._terminals[number].run(self._filled(block, command.text), self._script(block))
        self._printed += printed
        what = f"{block}: {command.text.strip()}"
        assert any_exit_code or status == 0, f"{what}\nended with {status} and printed\n{printed}"
        if command.shown is not None and command.text != FOR_THE_EXIT_CODE:
            shown = "\n".join(command.shown)
            assert matches(command.shown, printed), f"{what}\nshould print\n{shown}\nand printed\n{printed}"
        elif command.shown is not None:
            assert command.shown == (printed.strip(),), f"{what}: should be {command.shown}, and was {printed}"

    def _start(self, block: Block, command: Command, number: int) -> None:
        assert command.shown, f"{block}: a command that stays shows what it prints when it is ready"
        shown = command.shown
        terminal = self._terminals[number]
        self._staying[number].append(terminal)
        idle = self._idle[number]
        self._terminals[number] = idle.pop() if idle else self._open(self._machines[number])
        terminal.start(self._filled(block, command.text), self._script(block), lambda printed: matches(shown, printed))

    def _filled(self, block: Block, text: str) -> str:
        """The command with what was printed last in place of each beginning that it shows."""

        def latest(beginning: re.Match[str]) -> str:
            found = re.findall(rf"(?<!\S){beginning[1]}\S+", self._printed)
            assert found, f"{block}: nothing that begins with {beginning[1]} was printed above"
            return found[-1]

        return _TO_COPY.sub(latest, text)

    def _write(self, block: Block, number: int) -> None:
        """The file that the block is, into the folder where the terminal stands."""
        if block.file_name:
            _, folder = self._terminals[number].run("pwd\n", self._script(block))
            (Path(folder.strip()) / block.file_name).write_text(block.text)

    def _open(self, machine: Machine) -> Terminal:
        return Terminal(machine.folder, machine.environment, machine.prefix)

    def _script(self, block: Block) -> Path:
        """What the shell reads; a new file each time, as the shell may still read the one before."""
        number = len(list(self._scripts.iterdir()))
        return self._scripts / f"{number}-{block.page.stem}-{block.line}"
