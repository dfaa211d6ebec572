"""The command lines of the three runtimes, and which of them counts as working."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from workers import containers
from workers.containers import BadMount, Container

BOX = Container(
    name="ergon-a1-0",
    attempt="a1",
    image="localhost/train:1",
    argv=["python", "train.py"],
    env={"RANK": "0", "PATH": "/opt/bin", "TOKEN": "secret"},
    work="/state/a1/work",
    written=["/state/a1/work"],
    read=["/data"],
    gpus=["GPU-1", "GPU-2"],
    cpus=1.5,
    memory_bytes=1_000,
    processes=2_000,
    user=(1000, 1001),
)

MADE = (
    " create --name ergon-a1-0 --label ergon.attempt=a1 --pull never --init --network host --ipc host --log-driver none"
    " --security-opt no-new-privileges --security-opt label=disable{userns} --user 1000:1001 --workdir /state/a1/work"
    " --stop-timeout 0 --cpus 1.5 --memory 1000 --memory-swap 1000 --pids-limit 2000{gpus}{mounts}"
    " --env PATH=/opt/bin --env RANK --env TOKEN localhost/train:1 python train.py"
)
MOUNTS = (
    " --mount type=bind,source=/state/a1/work,destination=/state/a1/work"
    " --mount type=bind,source=/data,destination=/data,readonly"
)

COMMANDS = {
    "podman": (
        "podman"
        + MADE.format(
            userns=" --userns keep-id",
            gpus=" --device nvidia.com/gpu=GPU-1 --device nvidia.com/gpu=GPU-2",
            mounts=MOUNTS,
        ),
        "podman start --attach ergon-a1-0",
    ),
    "docker": (
        "docker" + MADE.format(userns="", gpus=' --gpus "device=GPU-1,GPU-2"', mounts=MOUNTS),
        "docker start --attach ergon-a1-0",
    ),
    "apptainer": (
        None,
        "apptainer exec --cleanenv --contain --no-home --pwd /state/a1/work"
        " --mount type=bind,source=/dev/shm,destination=/dev/shm --cpus 1.5 --memory 1000 --memory-swap 1000 --nv"
        f"{MOUNTS} localhost/train:1 python train.py",
    ),
}


@pytest.mark.parametrize("runtime", COMMANDS)
def test_command_lines(runtime: str) -> None:
    made, started = COMMANDS[runtime]
    if made is not None:
        assert " ".join(containers.create_command(runtime, BOX)) == made
    assert " ".join(containers.start_command(runtime, BOX)) == started


@pytest.mark.parametrize("runtime", ["podman", "docker"])
def test_as_root_without_limits_and_devices(runtime: str) -> None:
    plain = replace(BOX, gpus=[], cpus=None, memory_bytes=0, user=(0, 0))
    words = containers.create_command(runtime, plain)
    assert {"--userns", "--cpus", "--memory", "--device", "--gpus", "--privileged"} & set(words) == set()
    assert words[words.index("--user") + 1] == "0:0"


def test_variables_reach_the_container_and_not_the_program_that_makes_it() -> None:
    own = {"PATH": "/usr/bin", "HOME": "/root"}
    steering = dict.fromkeys(("PATH", "LD_PRELOAD", "DOCKER_HOST", "CONTAINERS_CONF", "XDG_RUNTIME_DIR"), "x")
    box = replace(BOX, env=steering | {"TOKEN": "secret\nlines"})
    assert containers.create_environment(box, own) == own | {"TOKEN": "secret\nlines"}
    words = containers.create_command("docker", box)
    assert "TOKEN" in words
    assert {f"{name}=x" for name in steering} < set(words)
    assert not any("secret" in word for word in words)
    assert containers.start_environment("apptainer", BOX)["APPTAINERENV_PATH"] == "/opt/bin"
    assert containers.start_environment("podman", BOX) == {}


@pytest.mark.parametrize("path", ["/data,ro=false", '/da"ta', "/da\nta", "/"])
def test_a_path_that_would_say_something_else_is_refused(path: str) -> None:
    with pytest.raises(BadMount, match="cannot be mounted"):
        containers.create_command("podman", replace(BOX, read=[path]))


def program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_a_program_alone_is_no_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert containers.find_runtime() == (None, "not installed: podman, apptainer, docker")
    program(tmp_path, "docker", "echo 'Is the docker daemon running?' >&2; exit 1")
    program(tmp_path, "podman", "echo 'warning' >&2; echo 'Error: no control groups' >&2; exit 125")
    runtime, fault = containers.find_runtime()
    assert runtime is None
    assert fault == (
        "podman: Error: no control groups; docker: Is the docker daemon running?; not installed: apptainer"
    )
    program(tmp_path, "docker", "echo 27.0")
    assert containers.find_runtime() == ("docker", "")


def test_containers_that_the_runtime_still_lists_are_not_gone(tmp_path: Path) -> None:
    own = {"PATH": str(tmp_path)}
    assert containers.remove("docker", "a1", own)
    log = tmp_path / "log"
    program(tmp_path, "docker", f'[ "$1" = ps ] && echo c1 || echo "$@" >> {log}')
    assert not containers.remove("docker", "a1", own)
    assert log.read_text().splitlines() == ["rm --force --volumes c1"] * containers.REMOVE_ROUNDS
    program(tmp_path, "docker", "exit 1")
    assert not containers.remove("docker", "a1", own)


@pytest.mark.parametrize(("killed", "code"), [("true", containers.MEMORY_SHORT), ("false", 0)])
def test_what_removes_containers_tells_whether_one_had_no_memory(tmp_path: Path, killed: str, code: int) -> None:
    gone = tmp_path / "gone"
    script = (
        f"case $1 in ps) test -e {gone} || echo c1 c2;; inspect) echo false; echo {killed};; rm) touch {gone};; esac"
    )
    program(tmp_path, "docker", script)
    (tmp_path / "touch").symlink_to(shutil.which("touch"))
    command = containers.remove_command(sys.executable, "docker", "a1")
    assert subprocess.run(command, env={"PATH": str(tmp_path)}, check=False).returncode == code
    assert gone.exists()
