"""Power budgets of the service: the file, what the planner makes of it, and who is told what."""

import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from scheduler.power import active_w
from scheduler.problem import PowerBudget
from service.power_budgets import GroupBudget, PowerRules
from service.power_pools import PowerPool
from service.settings import Settings, SettingsError
from service.web.units import power
from tests.service.cluster import Cluster
from tests.service.conftest import SignIn
from tests.service.test_cycle import new_cycle, reasons, states
from tests.service.test_switching import POOL, Site, open_site

GPU = PowerPool(name="gpu", nodes=("gpu-*",), on=("a",), off=("b",))
POOLS = '[pools.gpu]\nnodes = ["gpu-*"]\non = ["a"]\noff = ["b"]\n'


def read(folder: Path, text: str) -> tuple[GroupBudget, ...]:
    budgets, pools = folder / "budgets.toml", folder / "pools.toml"
    budgets.write_text(text, encoding="utf-8")
    pools.write_text(POOLS, encoding="utf-8")
    environment = {"ERGON_DATA_DIR": "/srv", "ERGON_POWER_POOLS": str(pools), "ERGON_POWER_BUDGETS": str(budgets)}
    return Settings.from_environment(environment).power_budgets


def test_the_page_says_what_there_is_and_which_nodes_count(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "power.md").read_text(encoding="utf-8")
    budgets = read(tmp_path, page.partition("## Power budgets")[2].partition("```toml\n")[2].partition("```")[0])
    nodes = {"gpu-1": {}, "gpu-71": {"rack": "7"}, "gpu-72": {"rack": "8"}, "cpu-1": {"rack": "7"}}
    assert PowerRules(pools=(GPU,), budgets=budgets).of(nodes) == (
        PowerBudget(name="hall", watts=120_000.0, nodes=("gpu-1", "gpu-71", "gpu-72", "cpu-1")),
        PowerBudget(name="gpu", watts=80_000.0, nodes=("gpu-1", "gpu-71", "gpu-72")),
        PowerBudget(name="rack-7", watts=22_000.0, nodes=("gpu-71",)),
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[budgets.hall", "is no TOML"),
        ("[budget.hall]\n", "budget: there are tables [budgets.NAME] only"),
        ("budgets = 3\n", "budgets: there are tables"),
        ("[budgets]\nhall = 3\n", "budgets.hall: must be a table"),
        ("[budgets.hall]\n", "budgets.hall.watts: Field required"),
        ("[budgets.hall]\nwatts = -1\n", "budgets.hall.watts: Input should be greater than or equal to 0"),
        ("[budgets.hall]\nwatts = 1\nnodes = []\n", "budgets.hall.nodes"),
        ("[budgets.hall]\nwatts = 1\nrack = 'a'\n", "budgets.hall.rack: Extra inputs are not permitted"),
        ("[budgets.hall]\nwatts = 1\npool = 'cpu'\n", "ERGON_POWER_POOLS has no pool 'cpu'; there are: gpu"),
    ],
)
def test_what_makes_no_sense_is_named_in_one_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(SettingsError) as raised:
        read(tmp_path, text)
    assert str(raised.value).startswith("ERGON_POWER_BUDGETS: ")
    assert complaint in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere.toml cannot be read .*name a TOML file"):
        Settings.from_environment({"ERGON_DATA_DIR": "/srv", "ERGON_POWER_BUDGETS": str(tmp_path / "nowhere.toml")})


H100_W = active_w("h100")


def limit(cluster: Cluster, watts: float, **group: object) -> None:
    """From now on the nodes of the group, or all of them, may draw so many watts."""
    budget = GroupBudget.model_validate({"name": "hall", "watts": watts, **group})
    cluster.settings = cluster.settings.model_copy(update={"power_budgets": (budget,)})


def draw_w(client: TestClient) -> tuple[float, float]:
    """What the one budget's nodes draw and may."""
    (budget,) = client.get("/v1/nodes").json()["power_budgets"]
    return budget["planned_w"], budget["limit_w"]


@pytest.fixture
def one_node(cluster: Cluster) -> Cluster:
    """A node with two H100, of which one may compute."""
    cluster.join("n1", slots=2, kind="h100")
    limit(cluster, cluster.node("n1").base_w + 1.5 * H100_W)
    return cluster


def test_a_job_waits_for_watts_says_so_and_starts_when_there_are_any(one_node: Cluster, client: TestClient) -> None:
    cluster, cycle = one_node, new_cycle(one_node)
    first, second = cluster.submit(devices_per_node=1), cluster.submit(devices_per_node=1)
    cycle.step(woken=True)
    assert states(cluster, first, second) == ["starting", "queued"]
    assert reasons(cluster, second) == ("waiting", ["power_budget"])
    (reason,) = cluster.job(second).verdict.reasons
    assert f"power budget hall leaves {H100_W / 2:.1f} of" in reason.message
    assert f"the job needs {H100_W:.1f} W there" in reason.message
    base_w = cluster.node("n1").base_w
    assert draw_w(client) == pytest.approx((base_w + H100_W, base_w + 1.5 * H100_W), abs=0.01)
    lines = client.get("/metrics").text
    assert f'ergon_power_budget_watts{{budget="hall"}} {base_w + 1.5 * H100_W}' in lines
    assert 'ergon_power_draw_watts{budget="hall"}' in lines
    cluster.end("n1", cluster.job(first).attempts[0])
    cycle.step(woken=True)
    assert states(cluster, second) == ["starting"]


def test_the_first_page_tells_each_budget(one_node: Cluster, sign_in: SignIn) -> None:
    page = " ".join(re.sub(r"<[^>]*>", " ", sign_in("alice").get("/").text).split())
    base_w = one_node.node("n1").base_w
    assert f"hall 1 {power(base_w)} {power(base_w + 1.5 * H100_W)}" in page


def test_a_dry_run_says_what_the_budget_lacks(one_node: Cluster, client: TestClient) -> None:
    jobs = [{"command": ["true"], "devices_per_node": 1}] * 2
    items = client.post("/v1/jobs/dry-run", json={"jobs": jobs}).json()["items"]
    assert [item["verdict"]["outcome"] for item in items] == ["placed", "waiting"]
    assert [reason["code"] for reason in items[1]["verdict"]["reasons"]] == ["power_budget"]


def test_a_job_that_the_budget_will_never_let_start_is_told_at_once(one_node: Cluster, client: TestClient) -> None:
    spec = {"command": ["true"], "devices_per_node": 2}
    told = client.post("/v1/jobs", json=spec).json()["verdict"]
    assert (told["outcome"], [reason["code"] for reason in told["reasons"]]) == ("waiting", ["never_within_budget"])
    assert f"the job needs {2 * H100_W:.1f} W there: it can never start" in told["reasons"][0]["message"]
    refused = client.post("/v1/jobs", json=spec | {"require_feasible": True})
    assert (refused.status_code, refused.json()["type"]) == (422, "urn:ergon:impossible")
    new_cycle(one_node).step(woken=True)
    (item,) = client.get("/v1/jobs").json()["items"]
    assert [reason["code"] for reason in item["verdict"]["reasons"]] == ["never_within_budget"]


def test_labels_and_names_say_whom_a_budget_is_for(cluster: Cluster) -> None:
    cluster.join("n1", slots=2, kind="h100", labels={"rack": "7"})
    cluster.join("n2", slots=2, kind="h100", labels={"rack": "8"})
    limit(cluster, 0.0, labels={"rack": "7"})
    cycle = new_cycle(cluster)
    jobs = [cluster.submit(devices_per_node=1) for _ in range(3)]
    cycle.step(woken=True)
    assert states(cluster, *jobs) == ["starting", "starting", "queued"]
    assert {member.node for job in jobs[:2] for member in cluster.job(job).attempts[0].members} == {"n2"}


def off_site(cluster: Cluster, **pool: object) -> Site:
    """A site whose only node is off, and what booting it draws."""
    site = open_site(cluster, POOL.model_copy(update=pool))
    cluster.join("n1", slots=1, kind="h100")
    site.put_off("n1")
    return site


def test_a_node_is_not_booted_where_its_boot_does_not_fit(cluster: Cluster) -> None:
    site = off_site(cluster)
    boot_w = max(1.2 * cluster.node("n1").base_w, cluster.node("n1").base_w + H100_W)
    limit(cluster, boot_w - 1.0)
    tight = Site(cluster, new_cycle(cluster, hooks=site.hooks), site.hooks)
    site.cycle.resign()
    job = cluster.submit(devices_per_node=1)
    tight.step()
    assert tight.power("n1") == ["off"]
    limit(cluster, boot_w)
    wide = Site(cluster, new_cycle(cluster, hooks=site.hooks), site.hooks)
    tight.cycle.resign()
    wide.step()
    assert wide.power("n1") == ["booting"]
    assert reasons(cluster, job) == ("waiting", ["nodes_boot"])
    second = cluster.submit(devices_per_node=0)
    wide.step(1)
    assert states(cluster, second) == ["queued"], "it boots still"


def test_a_reserve_is_not_booted_above_a_budget(cluster: Cluster) -> None:
    site = off_site(cluster)
    pool = POOL.model_copy(update={"warm": 1})
    cluster.settings = cluster.settings.model_copy(update={"power_pools": (pool,)})
    site.cycle.resign()
    for factor, state in ((1.1, "off"), (1.2, "booting")):
        limit(cluster, factor * cluster.node("n1").base_w + 0.01)
        other = Site(cluster, new_cycle(cluster, hooks=site.hooks), site.hooks)
        other.step()
        assert other.power("n1") == [state]
        other.cycle.resign()
