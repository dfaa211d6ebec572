"""`Dockerfile`, `.dockerignore` and `docker-compose.yml` as an engine reads them, as far as ours go."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pathspec import PathSpec

ROOT = Path(__file__).parents[2]
DOCKERFILE, COMPOSE_FILE = ROOT / "Dockerfile", ROOT / "docker-compose.yml"
IMAGE = "ergon"
PASSWORD = "chosen"
"""What stands for the secret that the person who starts the file has to choose."""


@dataclass(frozen=True, slots=True)
class Copy:
    """`COPY SOURCES TARGET`."""

    sources: tuple[str, ...]
    target: str


def instructions() -> Iterator[tuple[str, str]]:
    """Each instruction of the Dockerfile and what follows it; continued lines are one."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    for line in filter(None, text.splitlines()):
        name, _, rest = line.partition(" ")
        yield name, rest.strip()


def last(name: str) -> str:
    """What the last instruction of this name says."""
    return [rest for found, rest in instructions() if found == name][-1]


def copies() -> list[Copy]:
    """What comes into the image from here."""
    words = [rest.split() for name, rest in instructions() if name == "COPY"]
    return [Copy(tuple(found[:-1]), found[-1]) for found in words]


def image_entrypoint() -> list[str]:
    """What a container of the image runs, before the words of its command."""
    return json.loads(last("ENTRYPOINT"))


def image_environment() -> dict[str, str]:
    """What the image sets."""
    pairs = (word.partition("=") for name, rest in instructions() if name == "ENV" for word in shlex.split(rest))
    return {name: value for name, _, value in pairs}


@cache
def _ignored() -> PathSpec:
    """An engine reads each pattern from the root of the folder, for all that lies below what it fits as well; the last
    one that fits decides, as for pathspec."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    signs = [("!", line[1:]) if line.startswith("!") else ("", line) for line in lines]
    return PathSpec.from_lines("gitignore", [f"{no}/{name}{end}" for no, name in signs for end in ("", "/**")])


def is_sent(path: str) -> bool:
    """Whether this file or folder of the repository gets past `.dockerignore`."""
    return not _ignored().match_file(path)


def compose() -> dict[str, Any]:
    """The compose file with merges done and its variables filled in, every one with `PASSWORD`."""
    return _filled(yaml.safe_load(COMPOSE_FILE.read_text(encoding="utf-8")))


def services() -> dict[str, dict[str, Any]]:
    """What the compose file starts, by name."""
    return compose()["services"]


def ours() -> dict[str, dict[str, Any]]:
    """Those of `services` that run our image."""
    return {name: service for name, service in services().items() if service["image"] == IMAGE}


def command_of(service: Mapping[str, Any]) -> list[str]:
    """What a container of this service runs."""
    return [*service.get("entrypoint", image_entrypoint()), *service["command"]]


def environment_of(service: Mapping[str, Any]) -> dict[str, str]:
    """What a container of our image finds set."""
    return image_environment() | service.get("environment", {})


def mounts(service: Mapping[str, Any]) -> dict[str, str]:
    """Name of the volume by where it is mounted."""
    pairs = (volume.split(":") for volume in service.get("volumes", []))
    return {target: name for name, target, *_ in pairs}


def variables() -> set[str]:
    """What the person who starts the compose file has to set."""
    return set(re.findall(r"\$\{(\w+)", COMPOSE_FILE.read_text(encoding="utf-8")))


def _filled(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _filled(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_filled(part) for part in value]
    if isinstance(value, str):
        return re.sub(r"(?<!\$)\$\{\w+:\?[^}]*\}", PASSWORD, value).replace("$$", "$")
    return value
