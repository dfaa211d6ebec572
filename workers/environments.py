"""Python environments: one for each content of a requirements file and each interpreter, made once on a node.

An environment inherits everything that its interpreter has installed, torch above all, and adds what is missing.
"""

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from workers.cache import Cache
from workers.commands import run

LOCAL = re.compile(r"^\s*(-|\.|/)|file:|@\s*\.", re.MULTILINE)
"""Lines whose meaning is not in the file alone: options, other files, folders of the code."""

FACTS = (
    "import json, site, sys, sysconfig; "
    "own = [sysconfig.get_path(name) for name in ('purelib', 'platlib')]; "
    "print(json.dumps({'version': sys.version, 'packages': own + site.getsitepackages()}))"
)


class EnvironmentFailed(Exception):
    """The environment cannot be made. The message says why."""


def environment_python(
    cache: Cache, *, python: str, requirements: Path, folder: Path, code: str, env: Mapping[str, str]
) -> Path:
    """The interpreter of an environment with everything that `requirements` asks for.

    Args:
        python: the interpreter it is based on, an absolute path.
        requirements: the file.
        folder: where relative paths in it begin.
        code: digest of the code the file came with; it matters only if the file points to other files.
        env: variables of the build.

    Raises:
        CommandFailed: with the last lines of the build.
    """
    facts = json.loads(run([python, "-c", FACTS], env=env, cwd=str(folder), shown=False))
    text = requirements.read_bytes()
    hashed = hashlib.sha256()
    for part in (python, facts["version"], code if LOCAL.search(text.decode(errors="replace")) else ""):
        hashed.update(part.encode() + b"\0")
    hashed.update(text)

    def make(entry: Path) -> None:
        _build(entry, python=python, packages=facts["packages"], requirements=requirements, cwd=folder, env=env)

    return cache.get("environments", hashed.hexdigest()[:32], make) / "venv" / "bin" / "python"


def find_interpreter(name: str | None, path: str) -> str:
    """The interpreter of this name on the node, the agent's own for none.

    Raises:
        EnvironmentFailed: there is none.
    """
    if name is None:
        return sys.executable
    found = shutil.which(name, path=path)
    if found is None:
        raise EnvironmentFailed(f"there is no interpreter `{name}` on the node; install it there, or change --python")
    return found


def _build(
    entry: Path, *, python: str, packages: list[str], requirements: Path, cwd: Path, env: Mapping[str, str]
) -> None:
    folder = entry / "venv"
    sys.stderr.write(f"ergon: building a Python environment for {requirements.name}\n")
    run([python, "-m", "venv", "--without-pip", str(folder)], env=env, cwd=str(cwd))
    inner = str(folder / "bin" / "python")
    [site] = (folder / "lib").glob("python*/site-packages")
    lines = (f"import site; site.addsitedir({path!r})\n" for path in dict.fromkeys(packages))
    (site / "_inherited.pth").write_text("".join(lines))
    run([inner, "-m", "ensurepip"], env=env, cwd=str(cwd))
    install = ["install", "--disable-pip-version-check", "--no-input", "--requirement", str(requirements)]
    run([inner, "-m", "pip", *install], env=env, cwd=str(cwd))
