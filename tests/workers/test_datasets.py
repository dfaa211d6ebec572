"""Datasets: paths of the node as they are, URLs fetched once."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from protocol.caches import dataset_key
from workers.cache import Cache, Shelf
from workers.datasets import DatasetMissing, place_of


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    (tmp_path / "attempts" / "a1").mkdir(parents=True)
    return Cache(tmp_path / "cache", tmp_path / "attempts" / "a1")


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A server of one file, and the paths that were asked for."""
    asked: list[str] = []

    class Call(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200 if self.path.startswith("/data.csv") else 404)
            self.end_headers()
            self.wfile.write(b"1,2\n")

        def log_message(self, format: str, *args: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Call) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}", asked
        http.shutdown()
        thread.join()


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_path_is_where_it_is(cache: Cache, tmp_path: Path, form: str) -> None:
    (tmp_path / "data").mkdir()
    assert place_of(cache, "d", form.format(tmp_path / "data")) == tmp_path / "data"
    with pytest.raises(DatasetMissing, match=f"dataset d: there is no {tmp_path}/none on this node"):
        place_of(cache, "d", form.format(tmp_path / "none"))


def test_a_url_is_fetched_once(cache: Cache, server: tuple[str, list[str]], tmp_path: Path) -> None:
    url, asked = server
    places = {place_of(cache, "d", f"{url}/data.csv?v=1") for _ in range(2)}
    [place] = places
    assert (place.name, place.read_text()) == ("data.csv", "1,2\n")
    assert asked == ["/data.csv?v=1"]
    shelf = Shelf(tmp_path / "cache")
    shelf.look(1)
    [entry] = shelf.news() or ()
    assert (entry.key, entry.fetch and (entry.fetch.source, entry.fetch.size_bytes)) == (
        dataset_key(f"{url}/data.csv?v=1"),
        (url, 4),
    )
    assert place_of(cache, "d", f"{url}/data.csv?v=2") != place


def test_a_url_that_fails_leaves_nothing_and_is_tried_again(cache: Cache, server: tuple[str, list[str]]) -> None:
    url, asked = server
    for _ in range(2):
        with pytest.raises(DatasetMissing, match=f"dataset d: {url}/none cannot be fetched: the server answers 404"):
            place_of(cache, "d", f"{url}/none")
    assert asked == ["/none", "/none"]


def test_other_urls_go_through_fsspec(cache: Cache) -> None:
    with pytest.raises(DatasetMissing, match="dataset d: nope://bucket/x cannot be fetched"):
        place_of(cache, "d", "nope://bucket/x")
