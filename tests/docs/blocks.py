"""What of a page of the documentation can be run: its fenced blocks, in order, and the notes that stand before them.

A note is an HTML comment directly before a block. CONTRIBUTING.md, "The documentation", says what each means.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

SHELL = {"sh", "console"}
FILES = {"python", "yaml", "toml"}
SHOWN = {"text", "json", "mermaid"}
"""Languages of blocks that nobody runs: what is said elsewhere, and pictures."""

NOT_RUN = "not run: "
STAYS = "stays"
CTRL_C = "Ctrl-C"
SECOND_MACHINE = "on the second machine"
FILES_OF = "files of "

_NOTE = re.compile(r"<!-- (.*) -->")
_FILE_NAME = re.compile(r"# ([\w-]+\.[a-z]+)")


class PageError(Exception):
    """A page breaks the rules of CONTRIBUTING.md."""


@dataclass(frozen=True, slots=True)
class Block:
    """`line` is that of the opening fence, from 1."""

    page: Path
    line: int
    language: str
    text: str
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def reason_not_run(self) -> str | None:
        return next((note.removeprefix(NOT_RUN) for note in self.notes if note.startswith(NOT_RUN)), None)

    @property
    def files_of(self) -> Path | None:
        """The page whose files have to be there."""
        return next((ROOT / note.removeprefix(FILES_OF) for note in self.notes if note.startswith(FILES_OF)), None)

    @property
    def file_name(self) -> str | None:
        """A block whose first line is a comment with nothing but a file name is that file."""
        found = _FILE_NAME.fullmatch(self.text.partition("\n")[0])
        return found[1] if found else None


@dataclass(frozen=True, slots=True)
class Command:
    """What is typed, and the lines that a `console` block shows below it; None where nothing is promised."""

    text: str
    shown: tuple[str, ...] | None


def blocks(page: Path) -> list[Block]:
    """Raises PageError for a block without language, or with one or a note that nobody knows."""
    found: list[Block] = []
    notes: list[str] = []
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "html_block" and (note := _NOTE.fullmatch(token.content.strip())):
            notes.append(note[1])
        elif token.type in ("fence", "code_block"):
            found.append(_checked(Block(page, _line(token), token.info, token.content, tuple(notes))))
            notes = []
        elif notes:
            raise PageError(f"{page.name}:{_line(token)}: the note {notes[0]!r} stands before no block")
    return found


def _line(token: Token) -> int:
    return token.map[0] + 1 if token.map else 0


def _checked(block: Block) -> Block:
    if block.language not in SHELL | FILES | SHOWN:
        known = ", ".join(sorted(SHELL | FILES | SHOWN))
        raise PageError(f"{block}: a block has a fence and one of the languages {known}, not {block.language!r}")
    for note in block.notes:
        if note not in (STAYS, CTRL_C, SECOND_MACHINE) and not note.startswith((NOT_RUN, FILES_OF)):
            raise PageError(f"{block}: nobody knows what the note {note!r} means")
    if block.language in FILES - {"python"} and not (block.file_name or block.reason_not_run):
        raise PageError(f"{block}: a job file begins with a comment that names it, such as `# sweep.yaml`")
    return block


def commands(block: Block) -> Iterator[Command]:
    """A `sh` block is one script. A `console` block is a line after each `$ `, and what it prints."""
    if block.language == "sh":
        yield Command(block.text, None)
        return
    lines = block.text.splitlines()
    if not lines or not lines[0].startswith("$ "):
        raise PageError(f"{block}: a console block begins with `$ ` and a command")
    while lines:
        typed = [lines.pop(0).removeprefix("$ ")]
        while typed[-1].endswith("\\"):
            typed.append(lines.pop(0))
        shown: list[str] = []
        while lines and not lines[0].startswith("$ "):
            shown.append(lines.pop(0))
        yield Command("\n".join(typed) + "\n", tuple(shown) or None)
