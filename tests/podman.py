"""A podman of the tests' own: its storage lies in a folder, and its settings let it work in narrow places."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workers.containers import find_runtime

IMAGE = "localhost/ergon-test:1"

NARROW = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "runc"
"""
"""For a root that may not raise limits, on a machine with both generations of control groups: crun runs on neither."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Variables with which podman runs containers; or why it cannot."""

    environment: dict[str, str]
    fault: str

    def run(self, *words: str, **options: object) -> str:
        """What podman writes."""
        command = ["podman", *words]
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, stdout=subprocess.PIPE, check=True, **options
        )
        return done.stdout.decode()


@contextlib.contextmanager
def set_up(folder: Path) -> Iterator[Setup]:
    """The settings that work here: those of the machine if they do, else narrow ones."""
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n'
    )
    (folder / "narrow.conf").write_text(NARROW)
    fault = ""
    own = {"CONTAINERS_STORAGE_CONF": str(folder / "storage.conf")}
    for environment in (own, own | {"CONTAINERS_CONF": str(folder / "narrow.conf")}):
        with changed(environment):
            runtime, fault = find_runtime()
        if runtime == "podman":
            try:
                yield Setup(environment=environment, fault="")
            finally:
                _tear_down(folder)
            return
    _tear_down(folder)
    yield Setup(environment={}, fault=fault)


@contextlib.contextmanager
def changed(environment: dict[str, str]) -> Iterator[None]:
    """With these variables set."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def build_image(setup: Setup, folder: Path) -> str:
    """An image with this machine's Python, a shell, `sleep`, and nothing else; no registry is asked."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    base = Path(sys.base_prefix)
    python = Path(os.path.realpath(base / "bin" / version))
    library = base / "lib" / version
    unused = ("site-packages", "dist-packages", "test", "idlelib", "ensurepip", "__pycache__", "tkinter", "config-*")
    shutil.copytree(library, _inside(folder, library), ignore=shutil.ignore_patterns(*unused))
    for program in (python, Path("/bin/sh"), Path("/bin/sleep"), *(library / "lib-dynload").glob("*.so")):
        told = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
        for path in (program, *map(Path, re.findall(r"(/\S+) \(0x", told))):
            _inside(folder, path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, _inside(folder, path))
    for name in ("dev", "etc", "proc", "run", "sys", "tmp"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "usr/local/bin").mkdir(parents=True, exist_ok=True)
    (folder / "usr/local/bin/python").symlink_to(python)
    with subprocess.Popen(["tar", "-C", folder, "-c", "."], stdout=subprocess.PIPE) as tar:
        setup.run("import", "--quiet", "--change", "ENV PYTHONPATH=/opt/of-the-image", "-", IMAGE, stdin=tar.stdout)
    shutil.rmtree(folder)
    return IMAGE


def _inside(folder: Path, path: Path) -> Path:
    return folder / path.relative_to("/")


def _tear_down(folder: Path) -> None:
    """podman leaves its storage mounted onto itself."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in reversed([mount for mount in mounts if mount.startswith(f"{folder}/")]):
        subprocess.run(["umount", "--lazy", mount], check=False)
