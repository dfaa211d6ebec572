"""The part of an attempt's preparation that has to do with its image: fetch it once, then make a container for each
rank.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from workers import commands, files
from workers.cache import Cache
from workers.containers import (
    MADE,
    Container,
    ask,
    create_command,
    create_environment,
    start_command,
    start_environment,
)
from workers.limits import MOST_PROCESSES

RUNTIME_MODULES = [Path(__file__).resolve().parent.parent / "ergon" / name for name in ("runtime.py", "checkpoints.py")]
"""What a script in a container may import of ours: `ergon.runtime`, which needs nothing but Python."""


class ImageFailed(Exception):
    """The image cannot be had, or no container can be made of it. The message says why."""


def make_containers(cache: Cache, folder: Path, launch: dict, *, data: Mapping[str, str]) -> list[dict]:
    """A container for each rank of the attempt; how each is started: `argv`, and what `env` needs besides.

    Args:
        folder: the attempt's.
        launch: its launch record.
        data: variable and path of each dataset.

    Raises:
        ImageFailed, BadMount, OSError.
    """
    needs = launch["container"]
    runtime, reference = needs["runtime"], needs["image"]
    own = os.environ
    image = fetch_image(cache, runtime, reference, own)
    packages = _place_runtime_module(folder)
    shared = needs["env"] | data
    known = shared.get("PYTHONPATH") or image_variable(runtime, image, "PYTHONPATH", own)
    shared["PYTHONPATH"] = f"{known}:{packages}" if known else str(packages)
    files.write_record(str(folder / MADE), {"runtime": runtime})
    started: list[dict] = []
    for rank in launch["ranks"]:
        progress = rank["env"]["ERGON_PROGRESS"]
        os.close(os.open(progress, os.O_WRONLY | os.O_CREAT, 0o600))
        container = Container(
            name=f"ergon-{needs['attempt']}-{rank['rank']}",
            attempt=needs["attempt"],
            image=image,
            argv=launch["argv"],
            env=shared | rank["env"],
            work=str(folder / "work"),
            written=[str(folder / "work"), str(folder / "output"), progress, *_checkpoints(launch)],
            read=[str(packages), *sorted(set(data.values()))],
            gpus=needs["gpus"],
            cpus=needs["cpus"],
            memory_bytes=needs["memory_bytes"],
            processes=needs.get("processes", MOST_PROCESSES),  # a record of before has none
            user=(os.getuid(), os.getgid()),
        )
        if runtime != "apptainer":
            _create(runtime, container, own)
        started.append({"argv": start_command(runtime, container), "env": start_environment(runtime, container)})
    return started


def fetch_image(cache: Cache, runtime: str, reference: str, own: Mapping[str, str]) -> str:
    """See that the image is on this node; what the runtime knows it by. One that is there is not looked up again.

    Raises:
        ImageFailed: it cannot be pulled.
    """
    if runtime == "apptainer":

        def make(entry: Path) -> None:
            _pull([runtime, "pull", str(entry / "image.sif"), f"docker://{reference}"], reference, own)

        return str(cache.get("images", hashlib.sha256(reference.encode()).hexdigest()[:32], make) / "image.sif")
    with cache.locked("images"):
        if ask([runtime, "image", "inspect", reference], own)[0] != 0:
            _pull([runtime, "pull", reference], reference, own)
    return reference


def image_variable(runtime: str, image: str, name: str, own: Mapping[str, str]) -> str:
    """The value that an image gives to a variable, empty if none. Of apptainer's images it is not known."""
    if runtime == "apptainer":
        return ""
    code, told, _said = ask([runtime, "image", "inspect", "--format", "{{json .Config.Env}}", image], own)
    pairs = (json.loads(told) or []) if code == 0 else []
    return next((pair.partition("=")[2] for pair in pairs if pair.startswith(f"{name}=")), "")


def _pull(command: list[str], reference: str, own: Mapping[str, str]) -> None:
    sys.stderr.write(f"ergon: fetching the image {reference}\n")
    sys.stderr.flush()
    try:
        commands.run(command, env=own, cwd="/")
    except commands.CommandFailed as failed:
        why = failed.last[-1] if failed.last else str(failed)
        raise ImageFailed(
            f"image {reference} is not on this node and could not be pulled: {why}; check --image, or pull it there "
            f"with `{' '.join(command[:2])}` as the agent's user"
        ) from failed


def _create(runtime: str, container: Container, own: Mapping[str, str]) -> None:
    command = create_command(runtime, container)
    code, _out, said = ask(command, create_environment(container, own))
    if code != 0:
        raise ImageFailed(f"{runtime} cannot make a container of {container.image} on this node: {said}")


def _checkpoints(launch: dict) -> list[str]:
    """Where the ranks keep checkpoints, if they do: what is mounted must exist."""
    record = launch.get("checkpoints")
    if not record:
        return []
    Path(record["folder"]).mkdir(mode=0o700, parents=True, exist_ok=True)
    return [record["folder"]]


def _place_runtime_module(folder: Path) -> Path:
    """A folder that holds `ergon.runtime` and nothing else."""
    package = folder / "python" / "ergon"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").touch()
    for module in RUNTIME_MODULES:
        shutil.copyfile(module, package / module.name)
    return package.parent
