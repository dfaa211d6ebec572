"""What the pages say, without a browser: to whom, in which order, a page at a time, and with the API's numbers."""

import asyncio
import re
import zlib
from datetime import timedelta
from html import unescape

import httpx
import pytest
from fastapi.testclient import TestClient

from protocol.states import AttemptState, EndReason, Role
from scheduler import codec
from scheduler.plan import Cost, MemberPlacement, Outcome, Placement, Plan, PowerStep, Reason, Verdict
from service import control, maintenance
from service.api.hub import ANY, Hub
from service.store import cycles as cycle_store
from tests.service.cluster import Cluster
from tests.service.conftest import SignIn


def text(answer: httpx.Response) -> str:
    """What the page says, without its tags."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", answer.text)).split())


def test_the_overview_counts_devices_nodes_and_jobs(sign_in: SignIn, cluster: Cluster) -> None:
    cluster.join("cpu-1", slots=4)
    cluster.join("cpu-2", slots=2)
    cluster.join("gpu-1", slots=8, kind="h100")
    cluster.place(cluster.submit("alice", name="mine", devices_per_node=3), "cpu-1")
    cluster.submit("bob", name="theirs", device_kinds=["h200"])
    cluster.lose("cpu-2")
    seen = text(sign_in("root").get("/"))
    assert "cpu devices 3 of 6 allocated 1 idle, 2 lost" in seen
    assert "h100 devices 0 of 8 allocated 8 idle" in seen
    assert "Nodes 2 ready" in seen
    assert "1 lost" in seen
    assert "Jobs 1 running 1 waiting" in seen
    assert "no h200 device is present" in seen
    assert "3 of 4 cpu" in seen


def test_the_queue_is_in_the_order_of_the_planner(sign_in: SignIn, cluster: Cluster) -> None:
    names = [cluster.submit("alice", name=f"p{priority}", priority=priority) for priority in (0, 5, -1, 5)]
    seen = sign_in("alice").get("/").text
    waiting = re.findall(r'href="/jobs/([^"]+)"', seen[seen.index('id="waiting"') :])
    assert waiting == [names[1], names[3], names[0], names[2]]


def test_nodes_that_take_no_new_work_say_so(sign_in: SignIn, cluster: Cluster) -> None:
    root = cluster.person("root", Role.ADMIN)
    for name in ("n1", "n2", "n3"):
        cluster.join(name)
    with cluster.engine.begin() as tx:
        maintenance.cordon(tx, root, "n2")
        maintenance.drain(tx, root, "n3", deadline_s=60, now=cluster.now)
    seen = text(sign_in("alice").get("/"))
    assert re.findall(r"(n\d) Test CPU (\w+ \w+)", seen) == [
        ("n1", "ready 0"),
        ("n2", "ready cordoned"),
        ("n3", "ready draining"),
    ]


def test_devices_out_of_use_say_why(sign_in: SignIn, cluster: Cluster) -> None:
    cluster.join("n1")
    cluster.sync("n1", unfit={"cpu:n1:1": "<b>too hot</b>"})
    assert "unfit cpu 1: <b>too hot</b>" in text(sign_in("alice").get("/"))


def test_a_job_shows_the_priority_in_force_and_why_it_is_held(sign_in: SignIn, cluster: Cluster) -> None:
    first = cluster.submit("alice", priority=1)
    job = cluster.submit("alice", priority=2, after=[{"job": first, "on": "end"}], max_retries=3)
    with cluster.engine.begin() as tx:
        control.set_priority(tx, cluster.person("alice"), job, -7, now=cluster.now)
    client = sign_in("alice")
    seen = text(client.get(f"/jobs/{job}"))
    for words in ("default, priority -7", f"After the end of {first}", "Tries after a failure 3", "Why it waits"):
        assert words in seen, words
    assert re.search(rf"{job} alice 1 node × 1 device -7 just now [^–]*{first}", text(client.get("/")))


def test_a_user_sees_own_jobs_only(sign_in: SignIn, cluster: Cluster) -> None:
    cluster.join("n1")
    job = cluster.submit("alice", name="secret-project")
    cluster.place(job, "n1")
    cluster.submit("alice", name="secret-idea")
    bob = sign_in("bob")
    for address in ("/", "/jobs", "/jobs?user=alice", "/report"):
        page = bob.get(address).text
        assert "secret" not in page
        assert job not in page
        assert "/plans" not in page
    assert "another user" in bob.get("/").text
    assert "Your jobs 0 running 0 waiting" in text(bob.get("/"))
    assert bob.get(f"/jobs/{job}").status_code == 404
    assert bob.get("/plans").status_code == 403
    assert bob.get("/plans/1").status_code == 403


def test_jobs_page_and_filter(sign_in: SignIn, cluster: Cluster) -> None:
    ids = [cluster.submit("alice", name="even" if number % 2 == 0 else "odd") for number in range(55)]
    client = sign_in("alice")

    def listed(address: str) -> tuple[list[str], list[str]]:
        page = client.get(address)
        assert page.status_code == 200
        older = [unescape(found) for found in re.findall(r'rel="next" href="([^"]+)"', page.text)]
        return re.findall(r'class="name word" href="/jobs/([^"]+)"', page.text), older

    first, older = listed("/jobs")
    second, end = listed(older[0])
    assert (first + second, end) == (ids[::-1], [])
    evens = "/jobs?state=queued&state=running&name=even&user=&queue="
    assert listed(evens) == (ids[::2][::-1], [])
    assert listed("/jobs?state=running") == ([], [])
    assert "No job fits these filters" in client.get("/jobs?name=none").text


def test_an_older_page_keeps_the_filters(sign_in: SignIn, cluster: Cluster) -> None:
    for _ in range(51):
        cluster.submit("alice", name="same")
    page = sign_in("alice").get("/jobs?state=queued&name=same").text
    assert re.search(r'rel="next" href="/jobs\?state=queued&amp;name=same&amp;cursor=\d+"', page)


def test_a_job_says_what_it_asked_for_and_what_became_of_it(sign_in: SignIn, cluster: Cluster) -> None:
    cluster.join("n1")
    cluster.join("n2")
    command = ["python", "train.py", "--name", "it's"]
    job = cluster.submit("alice", nodes=2, command=command, env={"LEVEL": "3"}, time_limit_s=5_400)
    attempt = cluster.place(job, "n1", "n2")
    cluster.advance(90)
    cluster.tell("n1", attempt, AttemptState.RUNNING)
    cluster.tell("n2", attempt, AttemptState.RUNNING)
    cluster.advance(3_700)
    cluster.end("n1", attempt, EndReason.FAILED, 3)
    cluster.end("n2", attempt, EndReason.PEER_ENDED, None)
    seen = text(sign_in("alice").get(f"/jobs/{job}"))
    for words in (
        "Waited 1 min 30 s",
        "Ran for 1 h 1 min",
        "2 nodes × 1 device of any kind",
        "Time limit 1 h 30 min",
        """python train.py --name 'it'"'"'s'""",
        "LEVEL=3",
        "Why it ended a rank failed exit code 3",
        "1 member 0 n1",
        "peer ended",
        "2026-01-01 00:01:30 UTC 1 h ago running",
    ):
        assert words in seen, words


def test_output_and_curves_of_the_rank_and_attempt_that_are_asked_for(sign_in: SignIn, cluster: Cluster) -> None:
    cluster.join("n1")
    job = cluster.submit("alice", ranks_per_node=2)
    first = cluster.place(job, "n1")
    cluster.sync("n1", chunks=[chunk(first.id, 0, "stdout", b"first try\n")])
    cluster.end("n1", first, EndReason.FENCED, None)
    second = cluster.place(job, "n1")
    lines = [b'{"step": %d, "metrics": {"loss": %d, "lr": 0.5}}\n' % (step, 1000 - step) for step in range(1000)]
    chunks = [
        chunk(second.id, 0, "stdout", b"rank zero\n"),
        chunk(second.id, 0, "stderr", b"\x1b[31mcareful\x1b[0m\n"),
        chunk(second.id, 1, "stdout", b"rank one\n"),
        chunk(second.id, 0, "progress", b"".join(lines)),
    ]
    cluster.sync("n1", chunks=chunks)
    client = sign_in("alice")

    page = client.get(f"/jobs/{job}").text
    assert '<span class="stdout">rank zero\n</span><span class="stderr">careful\n</span></pre>' in page
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page, re.DOTALL)
    assert [" ".join(re.sub("<[^>]*>", " ", caption).split()) for caption in captions] == [
        "loss 1 at step 999",
        "lr 0.5 at step 999",
    ]
    drawn = [int(step.replace(",", "")) for step in re.findall(r"step ([\d,]+): [\d,]+</title>", page)]
    assert 200 <= len(drawn) <= 301
    assert drawn == sorted(drawn)
    assert (drawn[0], drawn[-1]) == (0, 999)

    page = client.get(f"/jobs/{job}?rank=1").text
    assert "rank one" in page
    assert "rank zero" not in page
    assert "<figure" not in page
    page = client.get(f"/jobs/{job}?attempt=1").text
    assert "first try" in page
    assert "<figure" not in page


def test_a_long_output_shows_its_end(sign_in: SignIn, cluster: Cluster) -> None:
    cluster.join("n1")
    job = cluster.submit("alice")
    attempt = cluster.place(job, "n1")
    offset = 0
    for number in range(3):
        data = b"".join(b"line %06d\n" % (number * 10_000 + line) for line in range(10_000))
        cluster.sync("n1", chunks=[chunk(attempt.id, 0, "stdout", data, offset)])
        offset += len(data)
    page = sign_in("alice").get(f"/jobs/{job}").text
    shown = re.findall(r"line (\d{6})", page)
    assert shown == [f"{number:06d}" for number in range(29_600, 30_000)]
    assert f"ergon logs {job}" in page


def test_events_come_in_pages(sign_in: SignIn, cluster: Cluster) -> None:
    cluster.join("n1")
    job = cluster.submit("alice")
    cluster.settings = cluster.settings.model_copy(update={"max_attempts": 100})
    for _ in range(35):
        cluster.end("n1", cluster.place(job, "n1"), EndReason.FENCED, None)
    client = sign_in("alice")
    first = client.get(f"/jobs/{job}").text
    later = re.search(r'rel="next" href="(/jobs/[^"#]+)#events"', first)
    assert later
    second = client.get(later[1]).text
    kinds = re.findall(r'<td data-label="What">([^<]+)</td>', first + second)
    assert kinds == [kind.replace("_", " ") for kind in cluster.events(job)] + kinds[100:]
    assert len(kinds) == 1 + 3 * 35


def test_the_report_shows_the_numbers_of_the_api(
    sign_in: SignIn, client: TestClient, as_root: dict[str, str], cluster: Cluster
) -> None:
    cluster.join("n1", slots=4)
    job = cluster.place(cluster.submit("alice", devices_per_node=3), "n1")
    cluster.advance(7_200)
    cluster.end("n1", job)
    cluster.advance(3_600)
    window = {"start": (cluster.now - timedelta(hours=4)).isoformat(), "end": cluster.now.isoformat()}
    api = client.get("/v1/reports/allocation", params=window, headers=as_root).json()
    assert api["nodes"][0]["allocated_device_hours"] == 6
    root = sign_in("root")
    seen = text(root.get("/report", params=window))
    wh = api["total_energy_kwh"] * 1000
    assert f"Energy {wh:.3g} Wh modelled" in seen
    assert "Allocated 50 % 6.00 of 12.00 device-hours" in seen
    assert "n1 4 12.00 6.00 6.00" in seen
    assert "alice 1 6.00" in seen
    csv = client.get("/v1/reports/allocation", params=window | {"format": "csv"}, headers=as_root)
    page = root.get("/report", params=window)
    link = re.search(r'href="(/report\.csv[^"]+)"', page.text)
    assert link
    download = root.get(unescape(link[1]))
    assert download.text == csv.text
    assert download.headers["Content-Type"].startswith("text/csv")
    assert re.fullmatch(r'attachment; filename="ergon-[0-9TZ-]+\.csv"', download.headers["Content-Disposition"])


def test_the_report_of_a_user_is_about_that_user(sign_in: SignIn, cluster: Cluster) -> None:
    cluster.join("n1", slots=4)
    cluster.place(cluster.submit("alice", devices_per_node=1), "n1")
    cluster.place(cluster.submit("bob", devices_per_node=2), "n1")
    cluster.advance(3_600)
    seen = text(sign_in("bob").get("/report"))
    assert "bob 1 2.00" in seen
    assert "alice" not in seen
    assert "n1" not in seen


def test_a_moment_without_an_offset_is_utc(sign_in: SignIn) -> None:
    seen = text(sign_in("alice").get("/report?start=2025-12-31T05:00&end=2025-12-31T06:30"))
    assert "2025-12-31 05:00:00 UTC to 2025-12-31 06:30:00 UTC , 1 h 30 min" in seen


@pytest.mark.parametrize(
    "query",
    ["start=2026-01-02T00:00", "start=2020-01-01T00:00", "start=x", "last=2y", "nodes=0", "end=0001-01-01T00:00"],
)
def test_a_window_that_cannot_be_shown_is_refused(sign_in: SignIn, query: str) -> None:
    answer = sign_in("alice").get(f"/report?{query}")
    assert answer.status_code == 422
    assert "<h1>" in answer.text


def test_many_nodes_and_users_come_in_pages(sign_in: SignIn, cluster: Cluster) -> None:
    for number in range(51):
        cluster.join(f"n{number:02d}", slots=1)
        cluster.place(cluster.submit(f"u{number:02d}"), f"n{number:02d}")
    cluster.advance(60)
    root = sign_in("root")
    first = root.get("/report?last=1h").text
    assert first.count('class="strip"') == 50
    assert "n50" not in first
    links = [unescape(link) for link in re.findall(r'rel="next" href="([^"]+)"', first)]
    assert links == ["/report?last=1h&nodes=2", "/report?last=1h&users=2"]
    assert "n50" in root.get(links[0]).text
    assert "u50" in root.get(links[1]).text
    overview = root.get("/").text
    assert "n50" not in overview
    assert "n50" in root.get("/?after=n49").text


def test_a_plan_shows_its_gap_its_verdicts_and_what_it_costs(sign_in: SignIn, cluster: Cluster) -> None:
    verdicts = (
        Verdict(job="job-a", outcome=Outcome.PLACED),
        *(
            Verdict(
                job=f"job-w{number:02d}",
                outcome=Outcome.WAITING,
                reasons=(Reason(code="busy", message=f"reason {number:02d}"),),
            )
            for number in range(60)
        ),
    )
    plan = Plan(
        placements=(
            Placement(
                job="job-a",
                shape=0,
                members=(
                    MemberPlacement(node="n1", devices=("d1", "d2")),
                    MemberPlacement(node="n2", devices=("d3", "d4")),
                ),
            ),
        ),
        verdicts=verdicts,
        power_steps=(PowerStep(node="n3", on=False, saves_j=3.6e6),),
        cost=Cost(off_j=0, on_j=7.2e6, boot_j=0, work_j=3.6e6, deferred_j=0, wait_j=3.6e6),
        bound_j=10.8e6,
        method="cpsat",
        status="feasible",
    )
    with cluster.engine.begin() as tx:
        number = cycle_store.add_cycle(
            tx,
            term=1,
            at=cluster.now,
            pending=61,
            placed=1,
            committed=1,
            objective_j=plan.objective_j,
            bound_j=plan.bound_j,
            gap=plan.gap,
            method=plan.method,
            status=plan.status,
            snapshot_s=0.01,
            solve_s=0.5,
            commit_s=0.02,
            problem=zlib.compress(b"{}"),
            plan=zlib.compress(codec.encode_plan(plan)),
        )
    root = sign_in("root")
    assert f"{number} just now 61 1 1 4 kWh 3 kWh 25 % cpsat feasible 500 ms" in text(root.get("/plans"))
    first = root.get(f"/plans/{number}")
    seen = text(first)
    for words in (
        "Solver gap 25 % feasible, by cpsat",
        "Objective 4 kWh proven to be at least 3 kWh",
        "Nodes that are on 2 kWh",
        "job-a n1, n2 4",
        "job-w00 waiting reason 00",
        "n3 off 1 kWh",
    ):
        assert words in seen, words
    assert "reason 59" not in seen
    (link,) = re.findall(r'rel="next" href="([^"]+)"', first.text)
    assert "job-w59 waiting reason 59" in text(root.get(unescape(link)))
    assert root.get("/plans/999").status_code == 404


def test_plans_come_in_pages(sign_in: SignIn, cluster: Cluster) -> None:
    with cluster.engine.begin() as tx:
        for number in range(51):
            cycle_store.add_cycle(
                tx,
                **dict.fromkeys(("term", "pending", "placed", "committed"), 1),
                **dict.fromkeys(("objective_j", "bound_j", "gap", "snapshot_s", "solve_s", "commit_s"), 0.0),
                **dict.fromkeys(("method", "status"), "x"),
                **dict.fromkeys(("problem", "plan"), b""),
                at=cluster.now + timedelta(seconds=number),
            )
    root = sign_in("root")
    first = root.get("/plans").text
    (link,) = re.findall(r'rel="next" href="([^"]+)"', first)
    numbers = re.findall(r'href="/plans/(\d+)"', first + root.get(link).text)
    assert numbers == [str(number) for number in range(51, 0, -1)]


def test_a_hub_tells_whoever_waits_for_anything() -> None:
    async def wait() -> None:
        hub = Hub()
        hub.attach(asyncio.get_running_loop())
        for topic in ("job:1", "cycle", ""):
            ticket = hub.ticket(ANY)
            parked = asyncio.create_task(hub.wait(ANY, ticket, 60))
            await asyncio.sleep(0)
            hub.heard(topic)
            await asyncio.wait_for(parked, 10)
            assert hub.ticket(ANY) != ticket

    asyncio.run(wait())


def chunk(attempt: str, rank: int, stream: str, data: bytes, offset: int = 0) -> dict[str, object]:
    return {"attempt": attempt, "rank": rank, "stream": stream, "offset": offset, "data": data}
