"""Hostile names do nothing, and the pages can be read: on a phone, in light and dark, with the keyboard alone."""

import json
import zlib

import pytest
from playwright.sync_api import Page, expect

from protocol.states import AttemptState, EndReason
from protocol.sync import RegisterRequest
from protocol.version import PROTOCOL_VERSION
from scheduler import codec
from scheduler.plan import Cost, MemberPlacement, Outcome, Placement, Plan, PowerStep, Reason, Verdict
from service import nodes
from service.store import cycles as cycle_store
from tests.browser.conftest import EVENTS_ONLY, Open, Site
from tests.service.cluster import node_report

pytestmark = [pytest.mark.system]

HOSTILE = (
    "<img src=x onerror=window.pwned=1><script>window.pwned=1</script></title></pre></svg></textarea>"
    "\"'><b id=injected onmouseover=window.pwned=1>\u202e{{ 7 * 7 }}"
)
LONG = "n" * 63


def hostile_cluster(site: Site) -> list[str]:
    """Everything that anybody may write is hostile or as long as it can be. The addresses of all pages."""
    cluster = site.cluster
    report = node_report("n", 4).model_copy(update={"cpu_model": HOSTILE[:255], "address": HOSTILE[:255]})
    with cluster.engine.begin() as tx:
        request = RegisterRequest(protocol=PROTOCOL_VERSION, report=report)
        nodes.register(tx, HOSTILE, request, lease_s=60, max_attempts=3, now=cluster.now)
    cluster.incarnations[HOSTILE] = 1
    cluster.join(LONG, slots=70)
    command = ["sh", "-c", HOSTILE]
    places = {"python": HOSTILE, "datasets": {"data": f"/{HOSTILE}"}}
    job = cluster.submit(HOSTILE, name=LONG, command=command, env={"X": HOSTILE}, **places)
    recipe = {"name": "digits-mlp", "options": {"note": HOSTILE}}
    waits = cluster.submit(LONG, name=LONG, command=None, recipe=recipe, device_kinds=["k" * 63])
    attempt = cluster.place(job, HOSTILE)
    cluster.tell(HOSTILE, attempt, AttemptState.RUNNING)
    cluster.advance(60)
    line = {"step": 1, "metrics": {HOSTILE: 1.0, "loss": 2.0}}
    chunks = [
        {"attempt": attempt.id, "rank": 0, "stream": stream, "offset": 0, "data": data}
        for stream, data in (
            ("progress", json.dumps(line).encode() + b"\n"),
            ("stdout", HOSTILE.encode() + b"\n" + b"x" * 3_000),
            ("stderr", HOSTILE.encode()),
        )
    ]
    cluster.sync(HOSTILE, chunks=chunks)
    cluster.tell(
        HOSTILE, attempt, AttemptState.ENDED, reason=EndReason.START_FAILED, exit_code=1, message=HOSTILE, clean=True
    )
    plan = Plan(
        placements=(Placement(job=HOSTILE, shape=0, members=(MemberPlacement(node=HOSTILE, devices=(HOSTILE,)),)),),
        verdicts=(
            Verdict(job=HOSTILE, outcome=Outcome.WAITING, reasons=(Reason(code=HOSTILE, message=HOSTILE + LONG),)),
        ),
        power_steps=(PowerStep(node=HOSTILE, on=False, saves_j=1),),
        cost=Cost(off_j=0, on_j=1, boot_j=0, work_j=1, deferred_j=0, wait_j=1),
        bound_j=1,
        method=HOSTILE,
        status=HOSTILE,
    )
    cluster.say_waiting(waits, cluster.problem()[1], HOSTILE)
    with cluster.engine.begin() as tx:
        numbers = dict.fromkeys(("objective_j", "bound_j", "gap", "snapshot_s", "solve_s", "commit_s"), 0.5)
        cycle = cycle_store.add_cycle(
            tx,
            **dict.fromkeys(("term", "pending", "placed", "committed"), 1),
            **numbers,
            at=cluster.now,
            method=HOSTILE,
            status=HOSTILE,
            problem=zlib.compress(b"{}"),
            plan=zlib.compress(codec.encode_plan(plan)),
        )
    return ["/", "/jobs", f"/jobs/{job}", f"/jobs/{waits}", "/report?last=1h", "/plans", f"/plans/{cycle}"]


def test_hostile_names_are_only_text(visit: Open, site: Site) -> None:
    addresses = hostile_cluster(site)
    opened = visit("root", script=EVENTS_ONLY)
    for address in addresses:
        page = opened.go(address)
        assert_harmless(page)
        assert "<img src=x onerror=window.pwned=1>" in page.inner_text("main"), address
        assert "{{ 7 * 7 }}" in page.inner_text("main") + page.content(), address
        if page.locator("[data-live]").count():
            with page.expect_response(site.url + address):
                site.hub.heard("cycle")
            expect(page.locator("#live")).to_have_text("live")
            assert_harmless(page)
    for address in (f"/jobs?name={LONG}%3Cb%20id=injected%3E", "/sign-in?next=/%22%3E%3Cb%20id=injected%3E"):
        assert_harmless(opened.go(address))


def assert_harmless(page: Page) -> None:
    page.evaluate("document.querySelectorAll('*').forEach(each => each.dispatchEvent(new MouseEvent('mouseover')))")
    assert page.evaluate("window.pwned") is None
    assert page.locator("#injected, img[src=x], [onmouseover], [onerror]").count() == 0
    assert "\u202e" not in page.content()


@pytest.mark.parametrize("width", [320, 768, 1280])
def test_no_page_is_wider_than_the_screen(visit: Open, site: Site, width: int) -> None:
    addresses = hostile_cluster(site)
    opened = visit("root", viewport={"width": width, "height": 800})
    for address in [*addresses, "/sign-in", "/jobs/none"]:
        page = opened.go(address)
        over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert over <= 0, address


CONTRAST = """() => {
  const channel = (value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r / 255) + 0.7152 * channel(g / 255) + 0.0722 * channel(b / 255);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const element of document.querySelectorAll("body *")) {
    const words = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!words || !element.checkVisibility() || element.closest("svg, script")) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) faint.push(`${element.className || element.tagName} ${ratio.toFixed(2)}`);
  }
  return faint;
}"""
"""Elements with text that stands out less than WCAG 2.2 asks for at level AA (1.4.3: 4.5 to 1)."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(visit: Open, site: Site, scheme: str) -> None:
    addresses = hostile_cluster(site)
    site.cluster.lose(LONG)
    opened = visit("root", color_scheme=scheme)
    for address in [*addresses, "/sign-in", "/jobs/none"]:
        page = opened.go(address)
        assert page.evaluate(CONTRAST) == [], address
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in background.removeprefix("rgb(").removesuffix(")").split(",")) / 3
    assert (brightness > 200) == (scheme == "light")


def test_everything_can_be_reached_with_the_keyboard(visit: Open, site: Site) -> None:
    site.cluster.join("n1")
    running = site.cluster.submit("root", name="first")
    site.cluster.place(running, "n1")
    page = visit("root").go(f"/jobs/{running}")
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the content")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()

    page.goto(f"{site.url}/jobs/{running}")
    wanted = page.locator("a[href], button, input:not([type=hidden]), summary, [tabindex='0']").count()
    seen: set[int] = set()
    for _ in range(wanted):
        page.keyboard.press("Tab")
        place, outline = page.evaluate(
            "() => [[...document.querySelectorAll('*')].indexOf(document.activeElement),"
            " getComputedStyle(document.activeElement).outlineStyle]"
        )
        assert outline != "none", place
        seen.add(place)
    assert len(seen) == wanted


def test_pages_have_a_language_one_heading_and_named_controls(visit: Open, site: Site) -> None:
    addresses = hostile_cluster(site)
    opened = visit("root")
    for address in [*addresses, "/sign-in"]:
        page = opened.go(address)
        assert page.locator("html").get_attribute("lang") == "en"
        assert page.locator("h1").count() == 1
        nameless = page.locator("input:not([type=hidden]), button, a, svg[role=img], progress").evaluate_all(
            "all => all.filter(one => !(one.labels?.length || one.ariaLabel || one.textContent.trim()))"
            ".map(one => one.outerHTML)"
        )
        assert nameless == [], address
