"""Pages that follow what happens, without a reload and without disturbing who reads them."""

import json

import pytest
from playwright.sync_api import Page, expect

from protocol.jobs import AttemptView
from protocol.states import AttemptState
from tests.browser.conftest import EVENTS_ONLY, Open, Site

pytestmark = [pytest.mark.system]

NO_EVENTS = """
  const real = window.setTimeout;
  window.setTimeout = (run, delay, ...rest) => real(run, delay > 5000 ? 50 : delay, ...rest);
  window.EventSource = class { addEventListener() {} close() {} };
"""
"""No event ever arrives, and a while is short."""


def following(page: Page) -> Page:
    """The page once it listens, with a mark that a reload would wipe."""
    expect(page.locator("#live")).to_have_text("live")
    page.evaluate("window.mark = 1")
    return page


def progress(site: Site, node: str, attempt: AttemptView, epoch: int, offset: int) -> int:
    """The rank of the attempt reports an epoch; where its next report begins."""
    line = {"step": epoch, "total_steps": 4, "epoch": epoch, "total_epochs": 4, "metrics": {"loss": 1 / epoch}}
    data = json.dumps(line).encode() + b"\n"
    chunk = {"attempt": attempt.id, "rank": 0, "stream": "progress", "offset": offset, "data": data}
    site.cluster.sync(node, chunks=[chunk])
    return offset + len(data)


def write(site: Site, node: str, attempt: AttemptView, data: bytes, offset: int) -> int:
    chunk = {"attempt": attempt.id, "rank": 0, "stream": "stdout", "offset": offset, "data": data}
    site.cluster.sync(node, chunks=[chunk])
    return offset + len(data)


def test_the_overview_follows_a_job_from_the_queue_to_its_end(visit: Open, site: Site) -> None:
    cluster = site.cluster
    cluster.join("n1")
    page = following(visit("alice", script=EVENTS_ONLY).go("/"))
    waiting, running, totals = page.locator("#waiting"), page.locator("#running"), page.locator("#totals")
    expect(waiting).to_contain_text("Nothing waits")

    job = cluster.submit("alice", name="digits")
    expect(waiting.get_by_role("row", name="digits")).to_be_visible()
    attempt = cluster.place(job, "n1")
    expect(running.get_by_role("row", name="digits")).to_contain_text("starting")
    expect(waiting).to_contain_text("Nothing waits")
    expect(totals).to_contain_text("1 of 2 allocated")
    expect(page.locator("#nodes")).to_contain_text("1 of 2 cpu")
    cluster.tell("n1", attempt, AttemptState.RUNNING)
    expect(running.get_by_role("row", name="digits")).to_contain_text("running")
    offset = progress(site, "n1", attempt, 1, 0)
    expect(running).to_contain_text("epoch 1 of 4 · loss 1")
    progress(site, "n1", attempt, 2, offset)
    expect(running).to_contain_text("epoch 2 of 4 · loss 0.5")
    assert page.get_by_role("progressbar").evaluate("bar => bar.value / bar.max") == 0.5
    cluster.end("n1", attempt)
    expect(running).to_contain_text("Nothing runs")
    expect(totals).to_contain_text("0 of 2 allocated")
    expect(totals).to_contain_text("1 succeeded")
    assert page.evaluate("window.mark") == 1


def test_a_page_that_hears_no_events_asks_by_itself(visit: Open, site: Site) -> None:
    page = following(visit("alice", script=NO_EVENTS).go("/jobs"))
    site.cluster.submit("alice", name="quiet")
    expect(page.get_by_role("link", name="quiet")).to_be_visible()
    assert page.evaluate("window.mark") == 1


def test_a_page_says_when_it_cannot_be_up_to_date(visit: Open, site: Site) -> None:
    opened = visit("alice", script=NO_EVENTS)
    page = following(opened.go("/jobs"))
    page.context.set_offline(True)
    expect(page.locator("#live")).to_have_text("no connection")
    page.context.set_offline(False)
    expect(page.locator("#live")).to_have_text("live")
    opened.problems.clear()


def test_a_hidden_tab_gives_its_connection_back(visit: Open, site: Site) -> None:
    """A browser opens six connections to one address; a seventh tab with a stream would find none."""
    script = """
      window.streams = 0;
      const Real = window.EventSource;
      window.EventSource = class extends Real {
        constructor(address) { super(address); window.streams++; }
        close() { super.close(); window.streams--; }
      };
      let hidden = false;
      Object.defineProperty(document, "hidden", { get: () => hidden });
      window.hide = (value) => { hidden = value; document.dispatchEvent(new Event("visibilitychange")); };
    """
    page = following(visit("alice", script=script).go("/jobs"))
    assert page.evaluate("window.streams") == 1
    page.evaluate("window.hide(true)")
    assert page.evaluate("window.streams") == 0
    site.cluster.submit("alice", name="unseen")
    page.evaluate("window.hide(false)")
    assert page.evaluate("window.streams") == 1
    expect(page.get_by_role("link", name="unseen")).to_be_visible()
    assert page.evaluate("window.mark") == 1


def test_a_job_page_follows_its_job(visit: Open, site: Site) -> None:
    cluster = site.cluster
    cluster.join("n1")
    job = cluster.submit("alice", name="digits")
    page = following(visit("alice", script=EVENTS_ONLY).go(f"/jobs/{job}"))
    expect(page.locator("#attempts")).to_contain_text("It has not been given any device yet")
    attempt = cluster.place(job, "n1")
    cluster.tell("n1", attempt, AttemptState.RUNNING)
    expect(page.get_by_role("heading", name="digits running")).to_be_visible()
    expect(page).to_have_title("running · digits · Ergon")

    devices = page.locator("#attempts summary")
    devices.click()
    expect(page.get_by_text("cpu:n1:0")).to_be_visible()
    offset = 0
    for epoch in (1, 2, 3):
        offset = progress(site, "n1", attempt, epoch, offset)
        expect(page.locator("#head")).to_contain_text(f"epoch {epoch} of 4")
    expect(page.get_by_role("img", name="loss: from 1 to 0.3333 over 3 points")).to_be_visible()

    cluster.end("n1", attempt)
    expect(page.get_by_role("heading", name="digits succeeded")).to_be_visible()
    expect(page.locator("#attempts")).to_contain_text("completed")
    expect(page.get_by_text("cpu:n1:0")).to_be_visible()
    expect(page.get_by_role("button", name="Cancel the job")).to_have_count(0)
    expect(page.locator("#events")).to_contain_text("ended")
    assert page.evaluate("window.mark") == 1


def test_the_log_stays_at_its_end_unless_somebody_reads_above(visit: Open, site: Site) -> None:
    cluster = site.cluster
    cluster.join("n1")
    job = cluster.submit("alice")
    attempt = cluster.place(job, "n1")
    offset = write(site, "n1", attempt, b"".join(b"line %d\n" % number for number in range(100)), 0)
    page = following(visit("alice", script=EVENTS_ONLY).go(f"/jobs/{job}"))
    log = page.locator("#log")
    left = "log => Math.round(log.scrollHeight - log.scrollTop - log.clientHeight)"
    assert log.evaluate(left) <= 1
    offset = write(site, "n1", attempt, b"line 100\n" * 20, offset)
    expect(log).to_contain_text("line 100")
    assert log.evaluate(left) <= 1
    log.evaluate("log => { log.scrollTop = 40; }")
    write(site, "n1", attempt, b"line 200\n", offset)
    expect(log).to_contain_text("line 200")
    assert log.evaluate("log => log.scrollTop") == 40


def test_text_that_is_being_selected_is_not_taken_away(visit: Open, site: Site) -> None:
    cluster = site.cluster
    cluster.join("n1")
    job = cluster.submit("alice")
    attempt = cluster.place(job, "n1")
    offset = write(site, "n1", attempt, b"copy me\n", 0)
    page = following(visit("alice", script=EVENTS_ONLY).go(f"/jobs/{job}"))
    page.evaluate("document.getSelection().selectAllChildren(document.getElementById('log'))")
    write(site, "n1", attempt, b"later\n", offset)
    progress(site, "n1", attempt, 1, 0)
    expect(page.locator("#head")).to_contain_text("epoch 1 of 4")
    assert page.evaluate("document.getSelection().toString()").strip() == "copy me"
    page.evaluate("document.getSelection().removeAllRanges()")
    site.hub.heard(f"job:{job}")
    expect(page.locator("#log")).to_contain_text("later")


def test_the_focus_stays_where_it_is(visit: Open, site: Site) -> None:
    cluster = site.cluster
    jobs = [cluster.submit("alice", name=f"job-{letter}") for letter in "abc"]
    page = following(visit("alice", script=EVENTS_ONLY).go("/"))
    page.locator(f'a[href="/jobs/{jobs[1]}"]').focus()
    cluster.cancel(jobs[0])
    expect(page.locator("#waiting")).not_to_contain_text("job-a")
    assert page.evaluate("document.activeElement.getAttribute('href')") == f"/jobs/{jobs[1]}"


def test_cancelling_asks_first(visit: Open, site: Site) -> None:
    job = site.cluster.submit("alice")
    opened = visit("alice")
    page = opened.go(f"/jobs/{job}")
    opened.confirms = False
    page.get_by_role("button", name="Cancel the job").click()
    assert site.cluster.job(job).state == "queued"
    opened.confirms = True
    page.get_by_role("button", name="Cancel the job").click()
    expect(page.get_by_text("it was cancelled")).to_be_visible()
    assert site.cluster.job(job).state == "cancelled"


def test_everything_works_without_a_script(visit: Open, site: Site) -> None:
    job = site.cluster.submit("alice", name="plain")
    page = visit("alice", java_script_enabled=False).go("/")
    page.get_by_role("link", name="plain").click()
    page.get_by_role("button", name="Cancel the job").click()
    expect(page.get_by_text("it was cancelled")).to_be_visible()
    assert site.cluster.job(job).state == "cancelled"
