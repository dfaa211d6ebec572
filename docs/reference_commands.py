"""The `ergon` command as Markdown: every command with its arguments and options, in the words of `--help`."""

import re
from collections.abc import Iterator
from typing import Any

import typer
from typer.main import get_command

HEAD = """\
# The `ergon` command

Made by `python -m docs.reference` from the command itself. Do not edit. `ergon COMMAND --help` says the same.
"""


def render(app: typer.Typer) -> str:
    """The whole page."""
    root = get_command(app)
    parts = [HEAD, _said(root.help), _said(getattr(root, "epilog", None))]
    parts += [_page(path, command) for path, command in _commands(root, "ergon")]
    return "\n".join(part for part in parts if part).rstrip() + "\n"


def _commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every command that does something, with the words to type."""
    for name, command in group.commands.items():
        words = f"{path} {name}"
        if hasattr(command, "commands"):
            yield from _commands(command, words)
        else:
            yield words, command


def _page(path: str, command: Any) -> str:
    context = typer.Context(command, info_name=path)
    lines = [
        f"## {path}\n",
        _said(command.help),
        "```text",
        " ".join([path, *command.collect_usage_pieces(context)]),
        "```",
        "",
    ]
    records = [record for each in command.params if (record := each.get_help_record(context)) is not None]
    if records:
        lines += ["| | |", "|---|---|", *(f"| `{_cell(names)}` | {_cell(text)} |" for names, text in records), ""]
    return "\n".join(lines)


def _said(text: str | None) -> str:
    """Paragraphs of a help text, each on one line."""
    paragraphs = re.split(r"\n\s*\n", (text or "").strip())
    return "\n\n".join(re.sub(r"\s+", " ", paragraph) for paragraph in paragraphs) + "\n"


def _cell(text: str | None) -> str:
    return re.sub(r"\s+", " ", text or "").replace("|", "\\|")
