"""Nodes are switched off and on through real cycles, with commands that the test lets end as it likes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from fastapi.testclient import TestClient

from protocol.nodes import NodeView
from protocol.states import AttemptState
from scheduler.plan import Plan
from scheduler.power import default_boot_wait_w
from scheduler.problem import Budget, Problem
from scheduler.solve import solve
from service.cycle.commit import Overtaken, TermOver, commit_boot, commit_off
from service.cycle.hooks import Ended
from service.cycle.loop import Cycle
from service.cycle.outlook import LEARN_EVERY_S
from service.power_pools import PowerPool
from tests.service.cluster import Cluster
from tests.service.test_cycle import new_cycle, reasons, states

POOL = PowerPool(
    name="p",
    nodes=("n*",),
    on=("wake", "{name}"),
    off=("halt", "{name}", "{address}"),
    idle_s=60,
    min_on_s=100,
    boot_limit_s=600,
    boots_per_hour=2,
)


@dataclass
class Hooks:
    """Commands that run until the test ends them."""

    running: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    over: list[Ended] = field(default_factory=list[Ended])

    def start(self, node: str, command: Sequence[str], limit_s: float) -> None:
        assert node not in self.running, "one at a time"
        assert limit_s == POOL.hook_limit_s
        self.running[node] = list(command)

    def runs(self, node: str) -> bool:
        return node in self.running

    def ended(self) -> list[Ended]:
        over, self.over = self.over, []
        return over

    def stop(self) -> None:
        self.running.clear()

    def end(self, node: str, fault: str | None = None) -> list[str]:
        """The node's command ends; what it was."""
        self.over.append(Ended(node=node, fault=fault))
        return self.running.pop(node)


@dataclass
class Site:
    """A cluster whose nodes can be switched, and its leading cycle."""

    cluster: Cluster
    cycle: Cycle
    hooks: Hooks

    def step(self, seconds: float = 0.0, *heard: str) -> None:
        """Let the time pass, with the agents of these nodes heard, and the cycle take two turns."""
        self.cluster.advance(seconds)
        for name in heard:
            self.cluster.sync(name)
        self.cycle.step(woken=True)
        self.cluster.advance(2)
        self.cycle.step(woken=True)

    def power(self, *names: str) -> list[str]:
        return [self.cluster.node(name).power for name in names]

    def put_off(self, name: str) -> None:
        """The plan switches the idle node off."""
        self.step(POOL.idle_s + POOL.min_on_s, name)
        assert self.power(name) == ["suspending"]
        assert self.hooks.end(name) == ["halt", name, "127.0.0.1"]
        self.cluster.sync(name, leaving=True)
        self.step()
        assert self.power(name) == ["off"]


def open_site(cluster: Cluster, *pools: PowerPool) -> Site:
    cluster.settings = cluster.settings.model_copy(update={"power_pools": pools or (POOL,)})
    cluster.lead()
    hooks = Hooks()
    cycle = new_cycle(cluster, hooks=hooks)
    cycle.step(woken=True)
    return Site(cluster, cycle, hooks)


@pytest.fixture
def site(cluster: Cluster) -> Site:
    return open_site(cluster)


def test_an_idle_node_goes_off_and_boots_for_a_job(site: Site) -> None:
    cluster = site.cluster
    cluster.join("n1")
    site.step(POOL.idle_s - 10, "n1")
    assert site.power("n1") == ["on"], "it was not idle for long enough"
    site.step(10, "n1")
    assert site.power("n1") == ["suspending"]
    first = cluster.submit()
    site.step(1, "n1")
    assert states(cluster, first) == ["queued"], "nothing new goes to a node that is to go off"
    assert site.hooks.end("n1") == ["halt", "n1", "127.0.0.1"]
    site.step(1, "n1")
    assert site.power("n1") == ["suspending"], "its agent is still heard"
    cluster.sync("n1", leaving=True)
    site.step()
    assert site.power("n1") == ["booting"], "off, and at once on again for the job that waits"
    assert site.hooks.running == {"n1": ["wake", "n1"]}
    assert reasons(cluster, first) == ("waiting", ["nodes_boot"])
    site.hooks.end("n1")
    site.step(60)
    assert states(cluster, first) == ["queued"]
    assert cluster.alarms() == {}
    cluster.join("n1", boot_id="boot-2")
    site.step()
    assert (site.power("n1"), states(cluster, first)) == (["on"], ["starting"])
    cluster.end("n1", cluster.job(first).attempts[0])
    site.step(POOL.idle_s + 1, "n1")
    assert site.power("n1") == ["on"], "it has not been on for long enough"
    site.step(POOL.min_on_s, "n1")
    assert site.power("n1") == ["suspending"]


def test_a_node_that_is_off_is_not_lost(site: Site) -> None:
    cluster = site.cluster
    for name in ("n1", "other"):
        cluster.join(name)
    site.step(POOL.idle_s, "n1", "other")
    assert site.power("n1", "other") == ["suspending", "on"], "the other one belongs to no pool"
    site.hooks.end("n1")
    for _ in range(5):
        site.step(cluster.settings.lease_s / 4, "other")
    node = cluster.node("n1")
    assert (node.power, node.power_fault) == ("off", None)
    assert cluster.alarms() == {}
    site.step(4 * cluster.settings.lease_s, "other")
    assert site.power("n1") == ["off"]
    cluster.sync("n1")
    assert site.power("n1") == ["on"], "a machine that was woken up by somebody else"


def test_of_a_start_and_a_switch_that_were_planned_at_once_one_is_refused(site: Site) -> None:
    cluster = site.cluster
    for name in ("n1", "n2"):
        cluster.join(name)
    job = cluster.submit()
    problem, seen = cluster.problem()
    term = cluster.lead()
    with cluster.engine.begin() as tx:
        commit_off(tx, "n1", term=term, now=cluster.now)
    with pytest.raises(Overtaken, match="off or to go off"):
        cluster.commit_on(job, problem, seen, "n1")
    cluster.commit_on(job, problem, seen, "n2")
    with pytest.raises(Overtaken, match="not empty"), cluster.engine.begin() as tx:
        commit_off(tx, "n2", term=term, now=cluster.now)
    assert site.power("n1", "n2") == ["suspending", "on"]
    for commit in (commit_off, commit_boot):
        with pytest.raises(TermOver), cluster.engine.begin() as tx:
            commit(tx, "n2", term=term - 1, now=cluster.now)


def test_a_command_that_fails_leaves_the_node_open_and_is_tried_again(site: Site) -> None:
    cluster = site.cluster
    cluster.join("n1")
    site.step(POOL.idle_s, "n1")
    site.hooks.end("n1", "no answer")
    job = cluster.submit()
    site.step(1, "n1")
    node = cluster.node("n1")
    assert (node.power, node.power_fault) == ("on", "no answer")
    assert cluster.alarms() == {"hook_failed": "n1"}
    assert states(cluster, job) == ["starting"]
    cluster.end("n1", cluster.job(job).attempts[0])
    site.put_off("n1")
    assert cluster.node("n1").power_fault is None
    assert cluster.alarms() == {}


def test_a_node_that_is_lost_after_its_command_failed_is_booted(site: Site) -> None:
    cluster = site.cluster
    cluster.join("n1")
    site.step(POOL.idle_s, "n1")
    site.hooks.end("n1", "did not end within 60 s")
    waits = cluster.submit(devices_per_node=1, on_disconnect="wait")
    other = cluster.submit(devices_per_node=1)
    site.step()
    assert states(cluster, waits, other) == ["starting", "starting"]
    cluster.lose("n1")
    site.step(20)
    assert site.power("n1") == ["booting"]
    assert site.hooks.end("n1") == ["wake", "n1"]
    cluster.join("n1", boot_id="boot-2")
    assert site.power("n1") == ["on"]
    assert cluster.node("n1").power_fault is None
    site.step(60, "n1")
    assert states(cluster, waits, other) == ["starting", "starting"], "what it was given meanwhile starts again"


def test_one_that_does_not_come_back_then_is_lost_and_set_aside_with_what_it_holds(site: Site) -> None:
    cluster = site.cluster
    cluster.join("n1")
    site.step(POOL.idle_s, "n1")
    site.hooks.end("n1", "did not end within 60 s")
    job = cluster.submit(on_disconnect="wait")
    site.step()
    cluster.lose("n1")
    site.step(20)
    site.hooks.end("n1")
    site.step(POOL.boot_limit_s)
    node = cluster.node("n1")
    assert (node.power, node.state, node.cordoned) == ("on", "lost", True), "what holds a node keeps it from being off"
    site.step(POOL.boot_limit_s)
    assert (site.power("n1"), site.hooks.running) == (["on"], {}), "a person looks at it first"
    cluster.uncordon("n1")
    site.step()
    assert site.power("n1") == ["booting"]
    cluster.join("n1", boot_id="boot-2")
    site.step(60, "n1")
    assert states(cluster, job) == ["starting"]


def test_an_old_message_does_not_keep_a_node_off_for_ever(site: Site) -> None:
    """It was off, its agent's last words came late: it counted as on, and then as lost."""
    cluster = site.cluster
    cluster.join("n1")
    site.put_off("n1")
    cluster.sync("n1")
    job = cluster.submit(devices_per_node=2)
    site.step()
    assert (site.power("n1"), states(cluster, job)) == (["on"], ["starting"])
    cluster.lose("n1")
    site.step()
    assert site.power("n1") == ["booting"]
    site.hooks.end("n1")
    cluster.join("n1", boot_id="boot-2")
    cluster.lose("n1")
    site.step()
    assert site.power("n1") == ["on"], "after a boot it is lost like any other"


def test_a_node_that_stays_on_in_spite_of_its_command_is_used_again(site: Site) -> None:
    site.cluster.join("n1")
    site.step(POOL.idle_s, "n1")
    site.hooks.end("n1")
    for _ in range(4):
        site.step(100, "n1")
    assert "still heard" in str(site.cluster.node("n1").power_fault)
    assert site.power("n1") == ["on"]


def test_a_node_that_does_not_boot_is_set_aside_and_its_job_runs_elsewhere(site: Site) -> None:
    cluster = site.cluster
    cluster.join("n1")
    site.put_off("n1")
    cluster.join("n2", slots=4)
    site.put_off("n2")
    job = cluster.submit()
    site.step()
    [chosen] = site.hooks.running
    [other] = {"n1", "n2"} - {chosen}
    site.hooks.end(chosen, "unreachable")
    site.step()
    assert site.hooks.running == {}, "it backs off"
    site.step(20)
    assert site.hooks.running == {chosen: ["wake", chosen]}
    site.hooks.end(chosen)
    site.step()
    site.step(POOL.boot_limit_s)
    node = cluster.node(chosen)
    assert (node.power, node.cordoned) == ("off", True)
    assert "not heard within 600 s" in str(node.closed_because)
    assert cluster.alarms()["node_closed"] == chosen
    assert site.power(other) == ["booting"]
    site.hooks.end(other)
    cluster.join(other, boot_id="boot-2", slots=4 if other == "n2" else 2)
    site.step()
    assert states(cluster, job) == ["starting"]
    assert [member.node for member in cluster.job(job).attempts[-1].members] == [other]
    cluster.uncordon(chosen)
    cluster.submit(devices_per_node=2, nodes=2)
    site.step(900, other)
    assert "node_closed" not in cluster.alarms()


def test_a_gang_waits_for_the_last_of_its_nodes_and_keeps_the_others(site: Site) -> None:
    cluster = site.cluster
    cluster.join("n1")
    site.put_off("n1")
    cluster.join("n2")
    gang = cluster.submit(nodes=2, devices_per_node=2)
    site.step()
    small = cluster.submit(expected_run_s=10)
    site.step(POOL.idle_s, "n2")
    assert states(cluster, gang, small) == ["queued", "queued"]
    assert site.power("n1", "n2") == ["booting", "on"]
    site.hooks.end("n1")
    cluster.join("n1", boot_id="boot-2")
    site.step()
    assert states(cluster, gang, small) == ["starting", "queued"]


def test_a_new_leader_plans_anew_on_the_nodes_that_boot(site: Site) -> None:
    cluster = site.cluster
    cluster.join("n1")
    site.put_off("n1")
    job = cluster.submit()
    site.step()
    site.cycle.resign()
    assert site.hooks.running == {}, "who does not lead any more ends its commands"
    second = Site(cluster, new_cycle(cluster, "cycle-2", hooks=site.hooks), site.hooks)
    second.step()
    assert site.hooks.running == {}, "the command may still run elsewhere"
    second.step(2 * POOL.hook_limit_s)
    assert site.hooks.running == {"n1": ["wake", "n1"]}
    assert site.power("n1") == ["booting"]
    cluster.join("n1", boot_id="boot-2")
    second.step()
    assert states(cluster, job) == ["starting"]


def test_a_cancelled_job_gives_up_the_node_that_boots_for_it(site: Site) -> None:
    cluster = site.cluster
    cluster.join("n1")
    site.put_off("n1")
    first, second = (cluster.submit(devices_per_node=2) for _ in range(2))
    site.step()
    cluster.cancel(first)
    site.step()
    cluster.join("n1", boot_id="boot-2")
    site.step()
    assert states(cluster, first, second) == ["cancelled", "starting"]


def test_a_node_boots_so_often_only(site: Site) -> None:
    cluster = site.cluster
    cluster.join("n1")
    for number in range(POOL.boots_per_hour):
        site.put_off("n1")
        job = cluster.submit()
        site.step()
        site.hooks.end("n1")
        cluster.join("n1", boot_id=f"boot-{number + 2}")
        site.step()
        cluster.end("n1", cluster.job(job).attempts[0])
    site.put_off("n1")
    job = cluster.submit()
    site.step()
    assert site.power("n1") == ["off"]
    assert reasons(cluster, job) == ("waiting", ["nodes_closed", "devices_busy"])
    site.step(3_600)
    assert site.power("n1") == ["booting"]


def test_a_reserve_stays_on_and_is_filled_up(cluster: Cluster) -> None:
    site = open_site(cluster, POOL.model_copy(update={"warm": 1}))
    for name in ("n1", "n2"):
        cluster.join(name)
    site.step(POOL.idle_s, "n1", "n2")
    assert sorted(site.power("n1", "n2")) == ["on", "suspending"]
    [goes], [stays] = ([name for name in ("n1", "n2") if site.power(name) == [state]] for state in ("suspending", "on"))
    site.hooks.end(goes)
    cluster.sync(goes, leaving=True)
    site.step(1, stays)
    assert site.power(goes) == ["off"]
    job = cluster.submit()
    site.step(1, stays)
    assert states(cluster, job) == ["starting"]
    assert site.power(goes) == ["booting"], "the next one comes on before it is needed"


def switch(client: TestClient, as_root: dict[str, str], name: str, word: str, **body: object) -> NodeView:
    answer = client.post(f"/v1/nodes/{name}/{word}", json=body or None, headers=as_root)
    assert answer.status_code == 200, answer.text
    return NodeView.model_validate_json(answer.text)


def test_an_administrator_has_the_last_word(site: Site, client: TestClient, as_root: dict[str, str]) -> None:
    cluster = site.cluster
    cluster.join("n1")
    job = cluster.submit()
    site.step()
    attempt = cluster.job(job).attempts[0]
    cluster.tell("n1", attempt, AttemptState.RUNNING)
    assert switch(client, as_root, "n1", "off").power_kept == "off"
    later = cluster.submit()
    site.step(1, "n1")
    assert states(cluster, job, later) == ["running", "queued"], "what runs goes on, nothing new comes"
    assert site.power("n1") == ["on"]
    cluster.end("n1", attempt)
    site.step()
    assert site.power("n1") == ["suspending"]
    refused = client.post("/v1/nodes/n1/on", json={}, headers=as_root)
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:ergon:not-switchable")
    site.hooks.end("n1")
    cluster.sync("n1", leaving=True)
    site.step()
    assert (site.power("n1"), states(cluster, later)) == (["off"], ["queued"]), "no job boots it"
    assert switch(client, as_root, "n1", "on", keep=True).power == "booting"
    site.step()
    assert site.hooks.end("n1") == ["wake", "n1"]
    cluster.join("n1", boot_id="boot-2")
    site.step()
    assert states(cluster, later) == ["starting"]
    cluster.end("n1", cluster.job(later).attempts[0])
    site.step(10 * POOL.idle_s, "n1")
    assert site.power("n1") == ["on"], "kept on"
    assert switch(client, as_root, "n1", "on", keep=False).power_kept is None
    site.step(1, "n1")
    assert site.power("n1") == ["suspending"]


def test_a_node_of_no_pool_cannot_be_switched(site: Site, client: TestClient, as_root: dict[str, str]) -> None:
    site.cluster.join("other")
    for word in ("on", "off"):
        answer = client.post(f"/v1/nodes/other/{word}", json={} if word == "on" else None, headers=as_root)
        assert answer.status_code == 409
        assert "ERGON_POWER_POOLS" in answer.json()["detail"]
    assert client.post("/v1/nodes/nobody/off", headers=as_root).status_code == 404


def test_what_is_off_counts_as_neither_lost_nor_idle(site: Site, client: TestClient) -> None:
    for name in ("n1", "other"):
        site.cluster.join(name)
    site.step(POOL.idle_s, "n1", "other")
    lines = client.get("/metrics").text.splitlines()
    told = {'ergon_nodes{state="suspending"} 1.0', 'ergon_nodes{state="ready"} 1.0', 'ergon_devices{use="off"} 2.0'}
    assert told | {'ergon_devices{use="idle"} 2.0'} <= set(lines)


def test_the_planner_knows_how_full_nodes_have_been_and_what_a_boot_is_worth(cluster: Cluster) -> None:
    asked: list[Problem] = []

    def remember(problem: Problem, budget: Budget) -> Plan:
        asked.append(problem)
        return solve(problem, budget)

    cluster.settings = cluster.settings.model_copy(update={"power_pools": (POOL,)})
    cycle = new_cycle(cluster, solve=remember, hooks=Hooks())
    for name in ("n1", "other"):
        cluster.join(name)
    attempt = cluster.place(cluster.submit(), "n1")
    cluster.place(cluster.submit(), "other")
    cluster.advance(LEARN_EVERY_S)
    cluster.end("n1", attempt)
    cluster.advance(LEARN_EVERY_S)
    for name in ("n1", "other"):
        cluster.sync(name)
    cluster.submit()
    cycle.step(woken=True)
    assert asked[-1].fill == pytest.approx(0.25), "one of two devices, half of the time"
    assert asked[-1].boot_wait_w == default_boot_wait_w(asked[-1].nodes) > 0
