"""Who gets to see a page, and what a form may do: cookies, origins, headers. Without a browser."""

import re

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.web.session import COOKIE
from tests.service.cluster import Cluster
from tests.service.conftest import ORIGIN, OWN_FORM, SignIn, stranger


def sign_in_form(client: TestClient, token: str, **more: str) -> httpx.Response:
    return client.post("/sign-in", data={"token": token, **more}, headers=OWN_FORM)


@pytest.mark.parametrize(
    "address", ["/", "/jobs", "/jobs/job-1", "/report", "/report.csv", "/plans", "/plans/1", "/web/events"]
)
def test_a_stranger_is_asked_to_sign_in(app: FastAPI, address: str) -> None:
    answer = stranger(app).get(address)
    assert (answer.status_code, answer.headers["Location"]) == (303, f"/sign-in?next={address}")


def test_after_signing_in_one_is_where_one_wanted_to_be(app: FastAPI, cluster: Cluster) -> None:
    cluster.person("alice")
    client = stranger(app)
    form = client.get(client.get("/jobs?state=running&name=a").headers["Location"])
    assert '<input type="hidden" name="next" value="/jobs?state=running&amp;name=a">' in form.text
    answer = sign_in_form(client, f" {cluster.tokens['alice']}\n", next="/jobs?state=running&name=a")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/jobs?state=running&name=a")
    assert client.get("/jobs").status_code == 200


def test_the_cookie_is_out_of_reach_of_scripts_and_of_other_sites(app: FastAPI, cluster: Cluster) -> None:
    cluster.person("alice")
    answer = sign_in_form(stranger(app), cluster.tokens["alice"])
    parts = answer.headers["Set-Cookie"].split("; ")
    assert parts[0] == f"{COOKIE}={cluster.tokens['alice']}"
    assert {part.lower() for part in parts[1:]} == {"httponly", "path=/", "samesite=strict"}


def test_the_cookie_stays_on_https_where_there_is_https(app: FastAPI, cluster: Cluster) -> None:
    cluster.person("alice")
    client = TestClient(app, "https://127.0.0.1", follow_redirects=False)
    data = {"token": cluster.tokens["alice"]}
    answer = client.post("/sign-in", data=data, headers={"Origin": "https://127.0.0.1"})
    assert "Secure" in answer.headers["Set-Cookie"].split("; ")


@pytest.mark.parametrize(("token", "status"), [("", 401), ("ergon_user_guess", 401), ("\ud800", 401), ("node", 403)])
def test_a_token_that_is_no_persons_is_refused(app: FastAPI, cluster: Cluster, token: str, status: int) -> None:
    token = cluster.node_token("n1") if token == "node" else token
    body = {"content": b"next=%2Fjobs&token=" + token.encode("utf-8", "surrogatepass")}
    answer = stranger(app).post("/sign-in", headers=OWN_FORM, **body)
    assert answer.status_code == status
    assert 'role="alert"' in answer.text
    assert 'value="/jobs"' in answer.text
    assert "Set-Cookie" not in answer.headers


def test_nobody_is_sent_to_another_site_after_signing_in(app: FastAPI, cluster: Cluster) -> None:
    cluster.person("alice")
    assert 'name="next" value="/"' in stranger(app).get("/sign-in?next=//evil.test/").text
    answer = sign_in_form(stranger(app), cluster.tokens["alice"], next="//evil.test/")
    assert answer.headers["Location"] == "/"


def test_signing_out_forgets_the_token(sign_in: SignIn) -> None:
    client = sign_in("alice")
    answer = client.post("/sign-out", headers=OWN_FORM)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/sign-in")
    assert client.get("/").status_code == 303


FROM_ELSEWHERE = [
    {},
    {"Origin": "null"},
    {"Origin": "https://evil.test"},
    {"Origin": f"{ORIGIN}:9"},
    {"Origin": f"{ORIGIN}.evil.test"},
    {"Origin": ORIGIN, "Sec-Fetch-Site": "cross-site"},
    {"Origin": ORIGIN, "Sec-Fetch-Site": "same-site"},
    {"Origin": ORIGIN, "Sec-Fetch-Site": "none"},
]


@pytest.mark.parametrize("headers", FROM_ELSEWHERE)
def test_a_form_of_another_site_does_nothing(sign_in: SignIn, cluster: Cluster, headers: dict[str, str]) -> None:
    job = cluster.submit("alice")
    client = sign_in("alice")
    for answer in (
        client.post(f"/jobs/{job}/cancel", headers=headers),
        client.post("/sign-out", headers=headers),
        client.post("/sign-in", data={"token": cluster.tokens["alice"]}, headers=headers),
    ):
        assert answer.status_code == 403
        assert "Set-Cookie" not in answer.headers
    assert cluster.job(job).state == "queued"


@pytest.mark.parametrize("headers", [OWN_FORM, {"Sec-Fetch-Site": "same-origin"}])
def test_a_form_of_ours_cancels_the_job(sign_in: SignIn, cluster: Cluster, headers: dict[str, str]) -> None:
    job = cluster.submit("alice")
    client = sign_in("alice")
    answer = client.post(f"/jobs/{job}/cancel", headers=headers)
    assert (answer.status_code, answer.headers["Location"]) == (303, f"/jobs/{job}")
    assert cluster.job(job).state == "cancelled"
    assert "Cancel the job" not in client.get(f"/jobs/{job}").text


def test_cancelling_what_is_over_or_not_ones_own_is_refused(sign_in: SignIn, cluster: Cluster) -> None:
    cluster.join("n1")
    job = cluster.submit("alice")
    cluster.end("n1", cluster.place(job, "n1"))
    assert sign_in("alice").post(f"/jobs/{job}/cancel", headers=OWN_FORM).status_code == 409
    other = cluster.submit("alice")
    assert sign_in("bob").post(f"/jobs/{other}/cancel", headers=OWN_FORM).status_code == 404
    assert cluster.job(other).state == "queued"


def test_the_api_never_takes_the_cookie(sign_in: SignIn, cluster: Cluster) -> None:
    job = cluster.submit("alice")
    client = sign_in("alice")
    for answer in (
        client.get("/v1/me"),
        client.get("/v1/jobs"),
        client.post("/v1/jobs", json={"command": ["true"]}, headers=OWN_FORM),
        client.post(f"/v1/jobs/{job}/cancel", headers=OWN_FORM),
    ):
        assert answer.status_code == 401
    assert cluster.job(job).state == "queued"


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("/", 200),
        ("/sign-in", 200),
        ("/jobs", 200),
        ("/jobs?cursor=x", 422),
        ("/jobs/job-none", 404),
        ("/report.csv", 200),
        ("/plans", 403),
        ("/web/static/ergon.css", 200),
    ],
)
def test_every_answer_has_the_strict_headers(sign_in: SignIn, address: str, status: int) -> None:
    answer = sign_in("alice").get(address)
    assert answer.status_code == status
    policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
    assert policy == {
        "default-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'self'",
        "frame-ancestors": "'none'",
        "object-src": "'none'",
    }
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "same-origin"
    kept = "immutable" in answer.headers["Cache-Control"]
    assert kept == address.startswith("/web/static/")
    assert kept or answer.headers["Cache-Control"] == "no-store"


def test_a_page_has_no_script_or_style_of_its_own(sign_in: SignIn, cluster: Cluster) -> None:
    page = sign_in("alice").get(f"/jobs/{cluster.submit('alice')}").text
    assert re.findall(r"<script[^>]*>[^<]+|<style|\sstyle=|\son[a-z]+=|javascript:", page) == []
    for address in re.findall(r"(?:src|href)=\"(/web/static/[^\"]+)\"", page):
        assert re.fullmatch(r"/web/static/[a-z.]+\?v=[0-9a-f]{12}", address)


def test_a_refusal_is_a_page(sign_in: SignIn) -> None:
    answer = sign_in("alice").get("/jobs/job-none")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "No such job" in answer.text
