"""Signing in and out, and what pages of other sites cannot do to somebody who is signed in here."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Open, Site, Visit

pytestmark = [pytest.mark.system]


Neighbour = Callable[[str], str]


@pytest.fixture
def neighbour() -> Iterator[Neighbour]:
    """Serves a page on another port of this machine, and gives its address."""
    with contextlib.ExitStack() as stack:

        def serve_page(html: str) -> str:
            class Call(BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    self.send_response(200)
                    self.send_header("Content-Type", "text/html")
                    self.end_headers()
                    self.wfile.write(f"<!doctype html>{html}".encode())

                def log_message(self, format: str, *args: object) -> None:
                    pass

            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Call))
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}"

        yield serve_page


def test_signing_in_and_out(visit: Open, site: Site) -> None:
    site.cluster.person("alice")
    page = visit(None).go("/jobs?state=queued")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    token = page.get_by_label("Your token")
    expect(token).to_be_focused()

    page.keyboard.type("ergon_user_wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("the token is not valid")
    assert page.context.cookies() == []

    token.fill(site.cluster.tokens["alice"])
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(f"{site.url}/jobs?state=queued")
    (cookie,) = page.context.cookies()
    assert (cookie["name"], cookie["value"]) == ("ergon_session", site.cluster.tokens["alice"])
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"], cookie["expires"]) == (True, "Strict", "/", -1)
    assert page.evaluate("document.cookie") == ""

    page.get_by_role("button", name="Sign out").click()
    expect(page).to_have_url(f"{site.url}/sign-in")
    assert page.context.cookies() == []
    page.go_back()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_a_page_notices_that_it_is_signed_out(visit: Open, site: Site) -> None:
    page = visit("alice").go("/jobs")
    expect(page.locator("#live")).to_have_text("live")
    page.context.clear_cookies()
    site.cluster.submit("alice")
    expect(page).to_have_url(f"{site.url}/sign-in?next=/jobs")


def test_the_api_does_not_take_the_cookie(visit: Open, site: Site) -> None:
    page = visit("alice").go("/")
    assert page.evaluate("fetch('/v1/me').then(answer => answer.status)") == 401


@pytest.mark.parametrize("near", [False, True])
def test_a_form_on_another_site_cannot_cancel_a_job(visit: Open, site: Site, neighbour: Neighbour, near: bool) -> None:
    """The near site differs by its port only: there the browser does send the cookie along."""
    job = site.cluster.submit("alice")
    attacked = visit("alice")
    form = f'<form method="post" action="{site.url}/jobs/{job}/cancel"><button>Win</button></form>'
    elsewhere = neighbour(form) if near else serve(attacked, form)
    page = attacked.page
    page.goto(f"{elsewhere}/")
    with page.expect_response(f"{site.url}/jobs/{job}/cancel") as answer:
        page.get_by_role("button").click()
    assert answer.value.status == 403
    assert site.cluster.job(job).state == "queued"
    assert ("cookie" in answer.value.request.all_headers()) == near
    expect(page.get_by_text("This form was not sent by a page of this service", exact=False)).to_be_visible()
    allow(attacked, elsewhere)


def test_a_form_on_another_site_cannot_sign_anybody_in(visit: Open, site: Site) -> None:
    site.cluster.person("mallory")
    token = site.cluster.tokens["mallory"]
    attacked = visit(None)
    form = f'<form method="post" action="{site.url}/sign-in"><input name="token" value="{token}"><button>Win</button>'
    elsewhere = serve(attacked, form)
    attacked.page.goto(f"{elsewhere}/")
    with attacked.page.expect_response(f"{site.url}/sign-in") as answer:
        attacked.page.get_by_role("button").click()
    assert answer.value.status == 403
    assert attacked.page.context.cookies() == []
    allow(attacked, elsewhere)


@pytest.mark.parametrize(("name", "arrives"), [("alice", "/jobs?name=a"), (None, "/sign-in?next=/jobs%3Fname%3Da")])
def test_a_link_on_another_site_leads_to_the_page(visit: Open, site: Site, name: str | None, arrives: str) -> None:
    """The browser keeps the cookie back at first, as the link is another site's; the page then opens itself."""
    followed = visit(name)
    elsewhere = serve(followed, f'<a href="{site.url}/jobs?name=a">look</a>')
    followed.page.goto(f"{elsewhere}/")
    followed.page.get_by_role("link").click()
    expect(followed.page).to_have_url(site.url + arrives)
    expect(followed.page.get_by_role("heading", name="Jobs" if name else "Sign in")).to_be_visible()
    allow(followed, elsewhere)


def test_no_other_site_can_put_a_page_into_a_frame(visit: Open, site: Site, neighbour: Neighbour) -> None:
    """The frame beside it, of an address that is no page, shows that frames as such do open."""
    framed = visit("alice")
    elsewhere = neighbour(f'<iframe src="{site.url}/jobs"></iframe><iframe src="{site.url}/livez"></iframe>')
    framed.page.goto(f"{elsewhere}/")
    page, other = framed.page.main_frame.child_frames
    assert other.url == f"{site.url}/livez"
    assert page.url.startswith("chrome-error:")
    framed.problems.clear()


def test_the_csv_of_the_report_comes_with_the_cookie(visit: Open, site: Site) -> None:
    site.cluster.join("n1")
    attempt = site.cluster.place(site.cluster.submit("alice"), "n1")
    site.cluster.advance(1_800)
    site.cluster.end("n1", attempt)
    page = visit("root").go("/report?last=1h")
    link = page.get_by_role("link", name="Download CSV")
    with page.expect_download() as download:
        link.click()
    query = (link.get_attribute("href") or "").partition("?")[2]
    headers = {"Authorization": f"Bearer {site.cluster.tokens['root']}"}
    api = httpx.get(f"{site.url}/v1/reports/allocation?format=csv&{query}", headers=headers)
    assert download.value.path().read_text() == api.text
    assert "node,n1," in api.text
    assert "user,alice," in api.text
    assert download.value.suggested_filename.endswith(".csv")


def serve(opened: Visit, html: str) -> str:
    """The address of a site far away, that this browser alone can reach."""
    opened.page.context.route(
        "http://evil.test/**", lambda route: route.fulfill(content_type="text/html", body=f"<!doctype html>{html}")
    )
    return "http://evil.test"


def allow(opened: Visit, address: str) -> None:
    """That the browser went to the other site is not a problem: the test sent it there."""
    opened.problems[:] = [problem for problem in opened.problems if not problem.startswith(f"{address}/")]
