"""What can be checked of the documentation without running it, and the rules by which its output is compared."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from markdown_it import MarkdownIt
from markdown_it.token import Token
from typer.core import TyperCommand, TyperGroup

from ergon.cli.main import app
from tests.docs.blocks import PAGES, ROOT, SHELL, PageError, blocks, commands
from tests.docs.matching import matches

STATUS = ROOT / "docs" / "status.md"
"""It names commands that are not there."""
ALL_PAGES = [*PAGES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs" / "adr").glob("*.md"))]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def inline(page: Path) -> Iterator[Token]:
    for token in MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8")):
        yield from token.children or ()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_of_a_page_is_used_by_its_commands(page: Path) -> None:
    found = blocks(page)
    typed = "".join(command.text for block in found if block.language in SHELL for command in commands(block))
    assert [block.file_name for block in found if block.file_name and block.file_name not in typed] == []


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    links = [str(token.attrs.get("href") or token.attrs.get("src") or "") for token in inline(page)]
    within = [link.partition("#")[0] for link in links if link and "://" not in link and not link.startswith("#")]
    assert [link for link in within if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", [page for page in ALL_PAGES if page != STATUS], ids=name_of)
def test_commands_in_the_text_exist(page: Path) -> None:
    named = [token.content for token in inline(page) if token.type == "code_inline"]
    faults = [fault for words in named if words.startswith("ergon ") for fault in faults_of(words)]
    assert faults == []
    tests = [path for words in named if words.startswith("pytest ") for path in words.split()[1:]]
    assert [path for path in tests if path.startswith("tests/") and not (ROOT / path).exists()] == []


def faults_of(words: str) -> Iterator[str]:
    """What is wrong with a command that a text names, up to the user's own, or `COMMAND`, which stands for any."""
    command: TyperGroup | TyperCommand = typer.main.get_command(app)
    for word in words.partition(" -- ")[0].split()[1:]:
        if word.startswith("-") and word.partition("=")[0] not in options_of(command) | {"--help"}:
            yield f"{words}: no option {word}"
        elif isinstance(command, TyperGroup) and not word.startswith("-"):
            if word == "COMMAND":
                return
            if word not in command.commands:
                yield f"{words}: no command {word}"
                return
            command = command.commands[word]


def options_of(command: TyperGroup | TyperCommand) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


def test_a_command_that_is_not_there_is_found() -> None:
    assert list(faults_of("ergon join-token new --node gpu-7")) == []
    assert list(faults_of("ergon submit --nodes 2 -- python train.py --lr 1")) == []
    assert list(faults_of("ergon join-token new --nodes 2")) == ["ergon join-token new --nodes 2: no option --nodes"]
    assert list(faults_of("ergon launch")) == ["ergon launch: no command launch"]


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        (["job-7g3k2m9qd4w1x"], "job-0000000000000\n", True),
        (["job-7g3k2m9qd4w1x"], "array-0000000000000\n", False),
        (["loss 0.21 after 4s"], "loss  1.7 after 12s", True),
        (["loss 0.21 after 4s"], "loss 0.21 after", False),
        (["node-1 ready"], "node-1 lost\n", False),
        (["node-1  http://127.0.0.1:8765/"], "node-1 http://127.0.0.1:41234/\n", True),
        (["2031-05-01 12:00:00"], "2026-11-25 23:10:11\n", True),
        (["first", "..."], "first\nsecond\nthird\n", True),
        (["first", "...", "last"], "first\nlast\n", True),
        (["first"], "first\nsecond\n", False),
        (["first", "second"], "second\nfirst\n", False),
        (["written to ... by us"], "written to /root/a b by us\n", True),
        (["written to ... by us"], "written to\nnothing by us\n", False),
        (["h200 is a kind"], "h100 is a kind\n", False),
    ],
)
def test_what_is_printed_is_compared_with_what_is_shown(shown: list[str], printed: str, same: bool) -> None:
    assert matches(shown, printed) is same


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("```\nergon up\n```\n", "not ''"),
        ("    ergon up\n", "not ''"),
        ("```bash\nergon up\n```\n", "not 'bash'"),
        ("<!-- not today -->\n```sh\nergon up\n```\n", "nobody knows what the note 'not today' means"),
        ("<!-- stays -->\n\nText.\n", "stands before no block"),
        ("```yaml\njobs: []\n```\n", "begins with a comment that names it"),
    ],
)
def test_a_page_that_could_hide_something_is_refused(text: str, fault: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(PageError, match=re.escape(fault)):
        blocks(page)
