"""The launch record: program, and exactly the variables that torchrun would set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.jobs import Recipe
from tests.workers.builders import assignment, cpu_slot, gpu
from workers.launch import disk_limit, launch_record

FOLDER = Path("/state/attempts/a1")
OF_TORCHRUN_ALONE = {"TORCHELASTIC_ERROR_FILE", "TORCHELASTIC_SIGNALS_TO_HANDLE", "LC_CTYPE"}
"""Where its own process looks for the error of a rank, which signals it passes on, and what its interpreter sets."""


def record(wanted, environment=None, *, interface="lo", rendezvous="127.0.0.1:20000"):
    return launch_record(
        wanted, folder=FOLDER, python="/py", interface=interface, rendezvous=rendezvous, environment=environment or {}
    )


def rank_environments(launch):
    return [launch["env"] | rank["env"] for rank in launch["ranks"]]


def test_the_variables_of_a_gang_are_those_of_torchrun():
    wanted = assignment(members=3, member=1, ranks=2, cpu_cores=6.0, epoch=4, env={"LR": "0.1"})
    first, second = rank_environments(record(wanted, rendezvous="10.0.0.7:20123"))
    assert first == {
        "RANK": "2",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "6",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "1",
        "GROUP_WORLD_SIZE": "3",
        "ROLE_RANK": "2",
        "ROLE_WORLD_SIZE": "6",
        "ROLE_NAME": "default",
        "MASTER_ADDR": "10.0.0.7",
        "MASTER_PORT": "20123",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_RUN_ID": "a1",
        "TORCHELASTIC_USE_AGENT_STORE": "False",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        "OMP_NUM_THREADS": "3",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "=lo",
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
        "ERGON_JOB_ID": "job-of-a1",
        "ERGON_ATTEMPT": "a1",
        "ERGON_EPOCH": "4",
        "ERGON_DUMP_SIGNAL": "47",
        "ERGON_PROGRESS": "/state/attempts/a1/rank-2.progress",
        "ERGON_OUTPUT": "/state/attempts/a1/output",
        "LR": "0.1",
    }
    assert {name for name in first if first[name] != second[name]} == {
        "RANK",
        "LOCAL_RANK",
        "ROLE_RANK",
        "ERGON_PROGRESS",
    }
    assert (second["RANK"], second["LOCAL_RANK"], second["ROLE_RANK"]) == ("3", "1", "3")


def test_no_variable_is_lacking_that_torchrun_itself_sets():
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1", "--no-python", "env"]
    before = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    printed = subprocess.run(command, env=before, capture_output=True, text=True, check=True).stdout
    theirs = dict(line.split("=", 1) for line in printed.splitlines() if "=" in line)
    of_torchrun = theirs.keys() - before.keys() - OF_TORCHRUN_ALONE
    assert {"RANK", "TORCHELASTIC_RUN_ID"} <= of_torchrun
    (ours,) = rank_environments(record(assignment()))
    assert of_torchrun <= ours.keys()


def test_a_user_cannot_pass_for_another_gang():
    claims = {
        "RANK": "9",
        "WORLD_SIZE": "9",
        "MASTER_ADDR": "evil",
        "ERGON_ATTEMPT": "b",
        "CUDA_VISIBLE_DEVICES": "GPU-b",
    }
    [environment] = rank_environments(record(assignment(env=claims)))
    assert not set(claims.items()) & set(environment.items())


def test_the_agents_own_environment_is_scrubbed():
    own = {
        "PATH": "/bin",
        "HOME": "/root",
        "LC_ALL": "C",
        "NCCL_DEBUG": "INFO",
        "SSL_CERT_FILE": "/ca.pem",
        "ERGON_TOKEN": "secret",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "PYTHONPATH": "/ours",
    }
    [environment] = rank_environments(record(assignment(), own))
    assert own.items() & environment.items() == {
        ("PATH", "/bin"),
        ("HOME", "/root"),
        ("LC_ALL", "C"),
        ("NCCL_DEBUG", "INFO"),
        ("SSL_CERT_FILE", "/ca.pem"),
    }
    assert not {"ERGON_TOKEN", "AWS_SECRET_ACCESS_KEY", "PYTHONPATH"} & set(environment)


@pytest.mark.parametrize(
    ("own", "users", "expected"),
    [
        ({}, {}, ("2", "lo")),
        ({"GLOO_SOCKET_IFNAME": "ib0"}, {}, ("2", "ib0")),
        ({"GLOO_SOCKET_IFNAME": "ib0"}, {"GLOO_SOCKET_IFNAME": "eth7", "OMP_NUM_THREADS": "1"}, ("1", "eth7")),
    ],
)
def test_user_over_operator_over_default(own, users, expected):
    [environment] = rank_environments(record(assignment(cpu_cores=2.0, env=users), own))
    assert (environment["OMP_NUM_THREADS"], environment["GLOO_SOCKET_IFNAME"]) == expected


@pytest.mark.parametrize(("cores", "ranks", "threads"), [(1.0, 1, "1"), (0.5, 1, "1"), (7.0, 2, "3"), (2.0, 4, "1")])
def test_threads_share_the_cores(cores, ranks, threads):
    launch = record(assignment(cpu_cores=cores, ranks=ranks))
    assert launch["env"]["OMP_NUM_THREADS"] == threads


def test_without_an_interface_the_choice_is_left_to_gloo_and_nccl():
    environment = record(assignment(members=2), interface=None)["env"]
    assert not {"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"} & environment.keys()


def test_nccl_is_told_the_interface_between_nodes_only_and_by_its_whole_name():
    assert record(assignment(members=2), interface="eth1")["env"]["NCCL_SOCKET_IFNAME"] == "=eth1"
    assert "NCCL_SOCKET_IFNAME" not in record(assignment(members=1))["env"]


@pytest.mark.parametrize(
    ("devices", "visible"),
    [
        ([cpu_slot(0)], ""),
        ([gpu("GPU-b", 3), gpu("GPU-a", 1)], "GPU-a,GPU-b"),
        ([gpu("GPU-a", 0), cpu_slot(1)], "GPU-a"),
    ],
)
def test_ranks_see_the_granted_accelerators_only(devices, visible):
    environment = record(assignment(devices=devices))["env"]
    assert environment["CUDA_VISIBLE_DEVICES"] == visible
    assert ("ACCELERATE_USE_CPU" in environment) == (not visible), "each rank of an Accelerate script trains alone else"


def test_a_recipe_becomes_a_module_call():
    options = {"lr": 0.1, "epochs": 20, "amp": True, "name": "a b", "deep": False}
    wanted = assignment(command=None, recipe=Recipe(name="digits-mlp", options=options))
    assert record(wanted)["argv"] == [
        *["/py", "-P", "-m", "training", "digits-mlp"],
        *["amp=true", "deep=false", "epochs=20", "lr=0.1", "name=a b"],
    ]


def test_a_command_stays_as_it_is():
    assert record(assignment(command=["train", "-c", "print($HOME)"]))["argv"] == ["train", "-c", "print($HOME)"]


@pytest.mark.parametrize("word", ["python", "python3"])
def test_python_is_the_one_the_job_names_or_the_agents_own(word):
    assert record(assignment(command=[word, "x.py"]))["argv"] == ["/py", "x.py"]
    assert record(assignment(command=[word, "x.py"], python="/opt/py"))["argv"] == ["/opt/py", "x.py"]
    assert record(assignment(command=["./python", "x.py"], python="/opt/py"))["argv"] == ["./python", "x.py"]


def test_only_an_attempt_that_needs_something_is_prepared():
    assert record(assignment(python="/opt/py"))["prepare"] is None
    own = {"PATH": "/bin", "PIP_INDEX_URL": "http://index", "HTTPS_PROXY": "http://proxy", "ERGON_TOKEN": "secret"}
    needs = record(assignment(code="0" * 64, command=["python", "x.py"], datasets={"d": "/d"}), own)["prepare"]
    assert needs == {
        "argv": ["/py", "-P", "-m", "workers.prepare", "/state/attempts/a1"],
        "env": {
            "PATH": "/bin",
            "PIP_INDEX_URL": "http://index",
            "HTTPS_PROXY": "http://proxy",
            "ERGON_ATTEMPT": "a1",
        },
        "code": "0" * 64,
        "python": None,
        "requirements": None,
        "datasets": {"d": "/d"},
        "checkpoint": None,
        "is_python": True,
    }


def test_an_ipv6_rendezvous_loses_its_brackets():
    environment = record(assignment(members=2), rendezvous="[fd00::1]:20001")["env"]
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("fd00::1", "20001")


def test_a_job_of_an_array_gets_its_number_and_cannot_pretend_another():
    (first,) = rank_environments(record(assignment(array_index=0, env={"ERGON_ARRAY_INDEX": "7"})))
    assert first["ERGON_ARRAY_INDEX"] == "0"
    (alone,) = rank_environments(record(assignment()))
    assert "ERGON_ARRAY_INDEX" not in alone


@pytest.mark.parametrize(
    ("of_job", "of_node", "limit", "remedy"),
    [
        (None, None, None, ""),
        (2 << 30, None, 2 << 30, "disk_bytes_per_node"),
        (None, 3 << 30, 3 << 30, "--disk-per-job"),
        (2 << 30, 3 << 30, 2 << 30, "disk_bytes_per_node"),
        (3 << 30, 3 << 30, 3 << 30, "disk_bytes_per_node"),
        (4 << 30, 3 << 30, 3 << 30, "--disk-per-job"),
    ],
)
def test_the_smaller_limit_of_the_disk_holds_and_its_setting_is_named(of_job, of_node, limit, remedy):
    found = disk_limit(of_job, of_node)
    assert (found and found["bytes"]) == limit
    if found:
        assert remedy in found["message"]
        assert f"{limit >> 30} GiB" in found["message"]


def test_in_a_container_the_image_says_what_python_and_path_are():
    node = {"PATH": "/node/bin", "HOME": "/root", "LC_ALL": "C", "NCCL_DEBUG": "INFO", "DOCKER_HOST": "unix:///d"}
    own = {"PATH": "/opt/bin", "GROUP_RANK": "9", "DOCKER_HOST": "tcp://elsewhere"}
    wanted = assignment(
        image="train:1",
        command=["python", "x.py"],
        env=own,
        ranks=2,
        cpu_limit=3.0,
        memory_bytes=1_000,
        devices=[gpu("GPU-b", 1), gpu("GPU-a", 0)],
    )
    launch = record(wanted, node)
    inside = launch["container"]["env"]
    assert {name: inside.get(name) for name in (*node, "GROUP_RANK")} == {
        "PATH": "/opt/bin",
        "HOME": None,
        "LC_ALL": None,
        "NCCL_DEBUG": "INFO",
        "DOCKER_HOST": "tcp://elsewhere",
        "GROUP_RANK": "0",
    }
    assert inside["ERGON_OUTPUT"] == "/state/attempts/a1/output"
    assert {name: launch["env"][name] for name in (*node, "GROUP_RANK")} == node | {"GROUP_RANK": "0"}
    assert launch["argv"] == ["python", "x.py"]
    assert record(wanted.model_copy(update={"python": "python3.12"}))["argv"] == ["python3.12", "x.py"]
    limits = {name: launch["container"][name] for name in ("cpus", "memory_bytes", "gpus")}
    assert limits == {"cpus": 1.5, "memory_bytes": 500, "gpus": ["GPU-a", "GPU-b"]}
    assert launch["prepare"]["env"]["DOCKER_HOST"] == "unix:///d"


def test_what_a_starter_must_be_made_for():
    def starter(**changes):
        return record(assignment(**{"command": ["python", "x.py"], "user": "ann"} | changes))["starter"]

    assert starter() == starter(env={"LR": "0.1"}) == {"user": "ann", "threads": "1"}
    assert starter(user="bob", cpu_cores=4.0) == starter(user="bob", env={"OMP_NUM_THREADS": "4"})
    assert starter(command=["python", "-m", "x"]) == starter(memory_bytes=1 << 30) == starter()
    executed = [
        {"command": ["sh", "x.py"]},
        {"command": ["python", "-u", "x.py"]},
        {"python": "/opt/py"},
        {"requirements": "r.txt", "code": "0" * 64},
        {"image": "ubuntu"},
        {"env": {"PYTHONPATH": "/x"}},
        {"env": {"OMP_NUM_THREADS": "2,1"}},
        {"memory_bytes": 1 << 28},
        {"memory_bytes": 1 << 29, "ranks": 2, "devices": [cpu_slot(0), cpu_slot(1)]},
    ]
    assert [starter(**changes) for changes in executed] == [None] * len(executed)
