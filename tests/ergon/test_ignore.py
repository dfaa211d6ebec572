"""What is shipped of a directory: as git would decide, and `.ergonignore` over it."""

import subprocess
from pathlib import Path

import pytest

from ergon.ignore import ignored_in


def tree(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def shipped(folder: Path) -> set[str]:
    """Files that are not ignored; nothing inside an ignored folder is looked at."""
    ignored = ignored_in(folder)
    found: set[str] = set()
    waiting = [folder]
    while waiting:
        for path in waiting.pop().iterdir():
            name = str(path.relative_to(folder))
            if not ignored(name, path.is_dir()):
                if path.is_dir():
                    waiting.append(path)
                else:
                    found.add(name)
    return found - {name for name in found if name.endswith("ignore")}


CASES = {
    "nothing to ignore": ({"a.py": "", "d/b.py": ""}, {"a.py", "d/b.py"}),
    "patterns": ({".gitignore": "*.pt\n/out\n", "a.pt": "", "d/a.pt": "", "out/x": "", "d/out/y": ""}, {"d/out/y"}),
    "taken back in": ({".gitignore": "*.pt\n!keep.pt\n", "a.pt": "", "keep.pt": ""}, {"keep.pt"}),
    "not inside a folder that is left out": ({".gitignore": "d/\n!d/x\n", "d/x": ""}, set()),
    "folders only": ({".gitignore": "x/\n", "x/y": "", "d/x": ""}, {"d/x"}),
    "nested": ({".gitignore": "*.csv\n", "d/.gitignore": "!*.csv\n", "a.csv": "", "d/a.csv": ""}, {"d/a.csv"}),
    "nested is about its own folder": ({"d/.gitignore": "/x\n", "x": "", "d/x": "", "d/e/x": ""}, {"x", "d/e/x"}),
    "comment and space": ({".gitignore": "# a\n\n\\#b\n", "# a": "", "#b": "", "c": ""}, {"# a", "c"}),
    "double star": ({".gitignore": "**/logs/*.txt\n", "a/logs/x.txt": "", "logs/y.txt": "", "logs/z": ""}, {"logs/z"}),
}


@pytest.mark.parametrize("case", CASES)
def test_as_git_decides(tmp_path: Path, case: str) -> None:
    files, expected = CASES[case]
    tree(tmp_path, files)
    assert shipped(tmp_path) == expected
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    listing = subprocess.run(
        ["git", "ls-files", "--others", "--exclude-standard", "-z"], cwd=tmp_path, check=True, capture_output=True
    )
    by_git = {name for name in listing.stdout.decode().split("\0") if name and not name.endswith("ignore")}
    assert shipped(tmp_path) == by_git


def test_ergonignore_has_the_last_word(tmp_path: Path) -> None:
    tree(tmp_path, {".gitignore": "*.bin\n", ".ergonignore": "!weights.bin\nnotes/\n", "weights.bin": "", "x.bin": ""})
    tree(tmp_path, {"notes/a": "", "b": ""})
    assert shipped(tmp_path) == {"weights.bin", "b"}


def test_the_rest_of_the_repository_counts(tmp_path: Path) -> None:
    tree(tmp_path, {".gitignore": "*.pt\n", "repo/.git/HEAD": "", "repo/.gitignore": "*.csv\n/sub/x\n"})
    tree(tmp_path, {f"repo/sub/{name}": "" for name in ("a.pt", "a.csv", "x", "b", ".git/y", "__pycache__/z")})
    assert shipped(tmp_path / "repo" / "sub") == {"a.pt", "a.csv", "x", "b"}
    (tmp_path / "repo" / "sub" / ".git" / "y").unlink()
    (tmp_path / "repo" / "sub" / ".git").rmdir()
    assert shipped(tmp_path / "repo" / "sub") == {"a.pt", "b"}
