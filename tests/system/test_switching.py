"""`ergon up` with agents that are stopped and started as machines would be: a job boots what it needs, a node that does
not boot is set aside, and what is idle goes off again.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ergon.cli.switch import SOCKET, write_pools
from ergon.client import Client
from ergon.credentials import load
from protocol.jobs import JobSpec
from protocol.nodes import NodeView
from protocol.states import JobState, PowerState
from tests.folders import short_folder

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

BROKEN = """
[pools.broken]
nodes = ["node-1"]
on = ["true"]
off = %s
idle_s = 0
min_on_s = 0
boot_s = 0
boot_limit_s = 2
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder("ergon-test-") as folder:
        yield folder


@pytest.fixture
def pools(folder: Path) -> Path:
    """node-1 goes off and never boots, though its command says it does; it is the cheaper one to boot."""
    path = folder / "pools.toml"
    write_pools(path, folder / "data", idle_s=0)
    content = path.read_text()
    off = next(line.removeprefix("off = ") for line in content.splitlines() if line.startswith("off = "))
    path.write_text(BROKEN % off + content)
    return path


@pytest.fixture
def client(folder: Path, pools: Path) -> Iterator[Client]:
    """An administrator of a cluster of two agents with one slot each."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ERGON_")}
    environment |= {
        "XDG_CONFIG_HOME": str(folder / "config"),
        "ERGON_POWER_POOLS": str(pools),
        "ERGON_TICK_S": "0.5",
    }
    words = ["up", "--port", "0", "--data-dir", str(folder / "data"), "--slots-per-agent", "1"]
    command = [sys.executable, "-P", "-c", "import sys; from ergon.cli.main import main; sys.exit(main())", *words]
    with subprocess.Popen(
        [*command, "--switch-off-idle", "1s", "--json"], env=environment, stdout=subprocess.PIPE, cwd=folder
    ) as process:
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            credentials = load(Path(ready["credentials"]))
            assert credentials is not None
            with Client(ready["url"], credentials.token) as client:
                yield client
            process.send_signal(signal.SIGTERM)
            assert process.wait() == 128 + signal.SIGTERM
        finally:
            process.kill()
    assert not (folder / "data" / SOCKET).exists()


def until(client: Client, ready: Callable[[dict[str, NodeView]], bool]) -> dict[str, NodeView]:
    """The nodes by name, once they are as they should be; the timeout of the test bounds the wait."""
    while not ready(found := {node.name: node for node in client.nodes()}):
        pass
    return found


def test_a_job_boots_what_it_needs_and_what_is_idle_goes_off_again(client: Client) -> None:
    until(client, lambda nodes: all(node.power == PowerState.OFF for node in nodes.values()))
    job = client.submit(JobSpec.model_validate({"command": ["true"], "expected_run_s": 5}))
    assert job.state == JobState.QUEUED
    end = client.wait(job.id)
    assert end.state == JobState.SUCCEEDED, end.reason
    assert [member.node for member in end.attempts[-1].members] == ["node-2"]
    nodes = until(client, lambda nodes: nodes["node-2"].power == PowerState.OFF)
    assert nodes["node-1"].closed_because is not None
    assert "not heard within 2 s" in nodes["node-1"].closed_because
    assert [alarm.kind for alarm in client.alarms()] == ["node_closed"]
