"""Every page of the documentation, followed by somebody who types what it says, with the real command and cluster.

`make test` follows the README only; `make pages` follows the others.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ergon.client import Client
from protocol.states import FINAL_JOB_STATES, JobState
from tests.docs.blocks import PAGES, ROOT, Block, blocks
from tests.docs.machines import Machine, copy_of_the_repository, someone, two_machines, two_machines_possible
from tests.docs.reader import Reader
from tests.docs.terminal import Terminal

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

README, QUICK_START = ROOT / "README.md", ROOT / "docs" / "quickstart.md"
OF_ONE_MACHINE = [README, QUICK_START]
"""They begin in a copy of the repository and start a cluster themselves."""
OF_TWO_MACHINES = [ROOT / "docs" / "tutorial.md", ROOT / "docs" / "second-machine.md"]
OF_A_RUNNING_CLUSTER = [page for page in PAGES if page not in OF_ONE_MACHINE + OF_TWO_MACHINES]
"""All others find a cluster that runs, `ergon` on the path and an administrator's credentials."""

READY = "Ctrl-C stops everything"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Open for passing through, as the database of a cluster that root starts is another user's."""
    with tempfile.TemporaryDirectory(prefix="ergon-docs-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)
        (Path(name) / "scripts").mkdir()
        yield Path(name)


@pytest.fixture(scope="module")
def running() -> Iterator[dict[str, str]]:
    """The environment of the person who has started a cluster."""
    with tempfile.TemporaryDirectory(prefix="ergon-docs-") as name:
        Path(name).chmod(0o711)
        environment = someone(Path(name) / "home", installed=True, ERGON_DATA_DIR=f"{name}/data", ERGON_PORT="0")
        terminal = Terminal(Path(name), environment)
        try:
            terminal.start("ergon up --slots-per-agent 2\n", Path(name) / "up", lambda printed: READY in printed)
            yield environment
        finally:
            terminal.close()


@pytest.mark.pages
@pytest.mark.xdist_group("running")
@pytest.mark.parametrize("page", OF_A_RUNNING_CLUSTER, ids=name_of)
def test_a_page_is_true_on_a_running_cluster(
    page: Path, running: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "work").mkdir()
    with Reader(folder / "scripts", Machine(folder / "work", running)) as reader:
        reader.follow(page)
    monkeypatch.setenv("HOME", running["HOME"])
    with Client() as client:
        for job in client.jobs(states=set(JobState) - FINAL_JOB_STATES):
            client.cancel(job.id)
            client.wait(job.id)


@pytest.mark.parametrize(
    "page", [README, pytest.param(QUICK_START, marks=pytest.mark.pages)], ids=["README.md", "docs/quickstart.md"]
)
def test_a_page_is_true_in_a_copy_of_the_repository(page: Path, folder: Path) -> None:
    environment = someone(folder / "home", installed=False, ERGON_DATA_DIR=str(folder / "data"), ERGON_PORT="0")
    with Reader(folder / "scripts", Machine(copy_of_the_repository(folder / "ergon"), environment)) as reader:
        reader.follow(page)


@pytest.mark.pages
@pytest.mark.parametrize("page", OF_TWO_MACHINES, ids=name_of)
def test_a_page_is_true_on_two_machines(page: Path, folder: Path) -> None:
    if reason := two_machines_possible():
        pytest.skip(reason)
    with two_machines(folder) as machines, Reader(folder / "scripts", *machines) as reader:
        reader.follow(page)


@pytest.mark.parametrize(
    "block", [block for page in PAGES for block in blocks(page) if block.reason_not_run is not None], ids=str
)
def test_what_is_not_run_says_why(block: Block) -> None:
    pytest.skip(f"{block}: {block.reason_not_run}")
