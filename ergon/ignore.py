"""What of a directory is not shipped: `.gitignore` as git reads it, and `.ergonignore` over it."""

from collections.abc import Callable
from pathlib import Path

import pathspec

FILES = (".gitignore", ".ergonignore")
"""In each folder the later one has the last word."""

NEVER = frozenset({".git", "__pycache__"})
"""Names that are left out wherever they are."""


def ignored_in(folder: Path) -> Callable[[str, bool], bool]:
    """Whether to leave out an entry of `folder`, by its path below it and whether it is a folder itself.

    Files of folders above count too, up to the top of the git repository that `folder` is in. As in git, the file
    nearest to the entry decides, and nothing inside a folder that is left out can be taken back in.
    """
    above = _repository_above(folder)
    specs: dict[Path, pathspec.GitIgnoreSpec | None] = {}

    def spec_of(place: Path) -> pathspec.GitIgnoreSpec | None:
        if place not in specs:
            specs[place] = _read(place)
        return specs[place]

    def is_ignored(path: str, is_folder: bool) -> bool:
        entry = folder / path
        if entry.name in NEVER:
            return True
        for place in entry.parents:
            spec = spec_of(place)
            if spec is not None:
                verdict = spec.check_file(entry.relative_to(place).as_posix() + ("/" if is_folder else "")).include
                if verdict is not None:
                    return verdict
            if place == above:
                return False
        return False

    return is_ignored


def _repository_above(folder: Path) -> Path:
    """The top of the git repository that holds the folder; the folder itself if none does."""
    return next((place for place in (folder, *folder.parents) if (place / ".git").exists()), folder)


def _read(place: Path) -> pathspec.GitIgnoreSpec | None:
    lines: list[str] = []
    for name in FILES:
        path = place / name
        if path.is_file():
            lines += path.read_text(encoding="utf-8", errors="replace").splitlines()
    return pathspec.GitIgnoreSpec.from_lines(lines) if lines else None
