"""From an assignment to a launch record: program, environment of every rank, limits, and the container if it has one.

The environment is the one `torchrun` gives, so that any script written for it runs unchanged (the variables are listed
in PyTorch's documentation of torchrun, section "Environment Variables").
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from archives.limits import show_bytes
from protocol.jobs import Recipe
from protocol.sync import Assignment, DeviceGrant
from workers.containers import client_environment, remove_command
from workers.limits import MOST_PROCESSES
from workers.rendezvous import split_address
from workers.stalls import DUMP_SIGNAL
from workers.starter import THREADS, early_variables, program_of

STREAM_CAP_BYTES = 64 * 1024 * 1024

KEPT_NAMES = frozenset({"PATH", "HOME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV"})
LEAST_IMAGE_BYTES = 512 * 1024 * 1024
"""Of memory for each rank, if it is limited: one that is forked from an image with torch copies 100 MB of it when it
ends, whether the script uses torch or not."""
NETWORK_PREFIXES = ("GLOO_", "NCCL_")
KEPT_PREFIXES = ("LC_", "SSL_CERT_", *NETWORK_PREFIXES)


PYTHONS = frozenset({"python", "python3"})
"""First words of a command that mean the job's interpreter, not one that happens to be on the node's PATH."""


def kept_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What of the agent's own environment the ranks get to see: no token, no setting of ours."""
    return {name: value for name, value in environment.items() if name in KEPT_NAMES or name.startswith(KEPT_PREFIXES)}


def launch_record(
    assignment: Assignment,
    *,
    folder: Path,
    python: str,
    interface: str | None,
    rendezvous: str,
    environment: Mapping[str, str],
    disk_bytes: int | None = None,
    runtime: str | None = None,
    checkpoints: Path | None = None,
    stores: bool = False,
) -> dict:
    """What the supervisor is told, apart from the node's own paths.

    Args:
        folder: the attempt's folder, where the ranks' progress files go.
        python: the interpreter that runs recipes.
        interface: the network interface that gloo uses, and NCCL between nodes; their own choice if None.
        rendezvous: `address:port` where rank 0 listens.
        environment: the agent's own environment.
        disk_bytes: what any member may have on this node's disk; no limit if None.
        runtime: what runs containers on this node.
        checkpoints: folder that all nodes share, below which each job has its own.
        stores: without such a folder, the attempt gets one of its own, whose content goes to the service. If neither,
            nothing keeps any.
    """
    gang = partial(gang_environment, interface=interface, rendezvous=rendezvous, environment=environment)
    saved = checkpoint_record(assignment, folder=folder, shared=checkpoints, stores=stores)
    output = {"ERGON_OUTPUT": str(folder / "output")} | checkpoint_variables(assignment, saved)
    env, container = gang(assignment) | output, None
    if assignment.image is not None:
        inside = contained(env, assignment=assignment, environment=environment)
        container = container_record(assignment, runtime=runtime, python=python, env=inside)
        # The job's own variables are not for the runtime's program, which the node alone sets up.
        env = gang(assignment.model_copy(update={"env": {}})) | client_environment(environment)
    return {
        "attempt": assignment.attempt,
        "epoch": assignment.epoch,
        "argv": command_line(assignment, python),
        "prepare": preparation(assignment, saved, folder=folder, python=python, environment=environment),
        "container": container,
        "starter": starter_record(assignment, env=env, python=python, environment=environment),
        "checkpoints": saved,
        "env": env,
        "ranks": [rank_record(assignment, local_rank, folder) for local_rank in range(assignment.ranks)],
        "time_limit_s": assignment.time_limit_s,
        "outlasts_lease": assignment.on_disconnect == "wait",
        "stop_grace_s": assignment.stop_grace_s,
        "stall_timeout_s": assignment.stall_timeout_s,
        "cap_bytes": STREAM_CAP_BYTES,
        "disk": disk_limit(assignment.disk_bytes, disk_bytes),
        "memory_bytes": 0 if container else assignment.memory_bytes,  # the runtime limits containers
        "memory_message": memory_message(assignment.memory_bytes),
    }


def starter_record(
    assignment: Assignment, *, env: Mapping[str, str], python: str, environment: Mapping[str, str]
) -> dict[str, str] | None:
    """What a starter must have been made for to start this; None if none can. The starter has the last word."""
    argv = command_line(assignment, python)
    is_small = 0 < assignment.memory_bytes < LEAST_IMAGE_BYTES * assignment.ranks
    threads = env.get(THREADS, "")
    is_early = early_variables(env) != early_variables(kept_environment(environment)) | {THREADS: threads}
    is_executed = bool(assignment.image or assignment.requirements) or argv[0] != python or program_of(argv) is None
    if is_executed or is_small or is_early:
        return None
    return {"user": assignment.user, "threads": threads} if threads.isdecimal() else None


def memory_message(memory_bytes: int) -> str:
    """What to say of a member that the kernel found no memory for. 0: it asked for none."""
    if memory_bytes:
        return f"it may use {show_bytes(memory_bytes)}; submit it with more `memory_bytes_per_node` (--memory)"
    return "its node had no more memory; submit it with `memory_bytes_per_node` (--memory), so that it is kept free"


def checkpoint_record(assignment: Assignment, *, folder: Path, shared: Path | None, stores: bool) -> dict | None:
    """Where ranks keep checkpoints, if they do; `local` are the first and the end of those that save in a folder of
    this node's own."""
    world_size = assignment.members * assignment.ranks
    if shared is not None:
        return {"folder": str(shared / assignment.job), "world_size": world_size}
    first = assignment.member * assignment.ranks
    own = {"folder": str(folder / "checkpoints"), "world_size": world_size, "local": [first, first + assignment.ranks]}
    return own if stores else None


def checkpoint_variables(assignment: Assignment, record: dict | None) -> dict[str, str]:
    """Where ranks keep checkpoints and which one they go on from: what the service has not heard of does not count."""
    if record is None:
        return {}
    mark = assignment.checkpoint
    latest = f"{mark.epoch}/{mark.step}" if mark else "0/0"
    local = {"ERGON_CHECKPOINT_LOCAL": "1"} if "local" in record else {}
    return {"ERGON_CHECKPOINT_DIR": record["folder"], "ERGON_CHECKPOINT_LATEST": latest} | local


def disk_limit(of_job: int | None, of_node: int | None) -> dict | None:
    """The smaller of two limits in bytes, and what to say of a member that goes beyond it; None if there is none."""
    if of_node is not None and (of_job is None or of_node < of_job):
        limit, remedy = of_node, "write less, or have an administrator raise --disk-per-job of the node's agent"
    elif of_job is not None:
        limit, remedy = of_job, "write less, or submit it with a larger `disk_bytes_per_node` (--disk)"
    else:
        return None
    said = f"its folder on the node, printed output included, takes more than {show_bytes(limit)}; {remedy}"
    return {"bytes": limit, "message": said}


def command_line(assignment: Assignment, python: str) -> list[str]:
    """Program and arguments of every rank."""
    if assignment.recipe is not None:
        return [python, "-P", "-m", "training", *recipe_arguments(assignment.recipe)]
    assert assignment.command, "the service grants no job without a program"
    if assignment.command[0] in PYTHONS:
        own = python if assignment.image is None else assignment.command[0]
        return [assignment.python or own, *assignment.command[1:]]
    return assignment.command


def preparation(
    assignment: Assignment, saved: dict | None, *, folder: Path, python: str, environment: Mapping[str, str]
) -> dict | None:
    """What `prepare.py` is told; None for an attempt that needs nothing and starts faster without."""
    mark = assignment.checkpoint if saved and assignment.checkpoint and assignment.checkpoint.stored else None
    if not (assignment.code or assignment.requirements or assignment.datasets or assignment.image or mark):
        return None
    own = {
        name: value
        for name, value in environment.items()
        if name.startswith("PIP_") or name.lower() in ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
    }
    return {
        "argv": [python, "-P", "-m", "workers.prepare", str(folder)],
        "env": kept_environment(environment)
        | client_environment(environment)
        | own
        | {"ERGON_ATTEMPT": assignment.attempt},
        "code": assignment.code,
        "python": assignment.python,
        "requirements": assignment.requirements,
        "datasets": assignment.datasets,
        "checkpoint": mark and [mark.epoch, mark.step],
        "is_python": assignment.recipe is None and (assignment.command or [""])[0] in PYTHONS,
    }


def contained(env: Mapping[str, str], *, assignment: Assignment, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that ranks in a container get: without the node's own paths, which mean nothing in there."""
    outside = kept_environment(environment)
    return {
        name: value
        for name, value in env.items()
        if name in assignment.env or name not in outside or name.startswith(NETWORK_PREFIXES)
    }


def container_record(assignment: Assignment, *, runtime: str | None, python: str, env: Mapping[str, str]) -> dict:
    """What the member's containers are made from, one for each rank: the member's limits are shared out evenly."""
    return {
        "runtime": runtime,
        "attempt": assignment.attempt,
        "image": assignment.image,
        "env": dict(env),
        "gpus": visible_devices(assignment.devices),
        "cpus": None if assignment.cpu_limit is None else assignment.cpu_limit / assignment.ranks,
        "memory_bytes": assignment.memory_bytes // assignment.ranks,
        "processes": MOST_PROCESSES // assignment.ranks,
        "remove": remove_command(python, runtime or "", assignment.attempt),
    }


def recipe_arguments(recipe: Recipe) -> list[str]:
    """The recipe's name, then `key=value` by key. Values as in JSON, except that text stands as it is."""
    options = (
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in sorted(recipe.options.items())
    )
    return [recipe.name, *options]


def gang_environment(
    assignment: Assignment, *, interface: str | None, rendezvous: str, environment: Mapping[str, str]
) -> dict[str, str]:
    """The variables that all ranks of this member share.

    The user's own come over defaults and under everything that identifies the gang: a job cannot pass for another.
    """
    defaults = {
        "OMP_NUM_THREADS": str(max(1, int(assignment.cpu_cores / assignment.ranks))),
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    }
    accelerators = visible_devices(assignment.devices)
    if not accelerators:
        defaults["ACCELERATE_USE_CPU"] = "true"  # without it, every rank of an Accelerate script trains alone
    if interface is not None:
        defaults["GLOO_SOCKET_IFNAME"] = interface
        if assignment.members > 1:
            defaults["NCCL_SOCKET_IFNAME"] = f"={interface}"  # without the sign NCCL takes it for a prefix
    master_address, master_port = split_address(rendezvous)
    world_size = assignment.members * assignment.ranks
    identity = {
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(assignment.ranks),
        "GROUP_RANK": str(assignment.member),
        "GROUP_WORLD_SIZE": str(assignment.members),
        "ROLE_NAME": "default",
        "ROLE_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": master_address,
        "MASTER_PORT": str(master_port),
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_RUN_ID": assignment.attempt,
        "TORCHELASTIC_USE_AGENT_STORE": "False",  # rank 0 opens the store at MASTER_PORT, not the agent
        "CUDA_VISIBLE_DEVICES": ",".join(accelerators),
        "ERGON_JOB_ID": assignment.job,
        "ERGON_ATTEMPT": assignment.attempt,
        "ERGON_EPOCH": str(assignment.epoch),
        "ERGON_DUMP_SIGNAL": str(int(DUMP_SIGNAL)),
    }
    if assignment.array_index is not None:
        identity["ERGON_ARRAY_INDEX"] = str(assignment.array_index)
    return defaults | kept_environment(environment) | assignment.env | identity


def visible_devices(devices: list[DeviceGrant]) -> list[str]:
    """UUIDs of the granted accelerators in the driver's order. None for CPU slots: such a job sees no accelerator."""
    accelerators = (device for device in devices if device.kind != "cpu")
    return [device.id for device in sorted(accelerators, key=lambda device: device.index)]


def rank_record(assignment: Assignment, local_rank: int, folder: Path) -> dict:
    """Number and own variables of one rank."""
    rank = assignment.member * assignment.ranks + local_rank
    return {
        "rank": rank,
        "env": {
            "RANK": str(rank),
            "LOCAL_RANK": str(local_rank),
            "ROLE_RANK": str(rank),
            "ERGON_PROGRESS": str(folder / f"rank-{rank}.progress"),
        },
    }
