"""Datasets of a job: paths of the node, and URLs that are fetched once and kept."""

import importlib
import os
import urllib.parse
from pathlib import Path

import httpx

from protocol.caches import Fetch, dataset_key, is_fetched, source_of
from workers.cache import Cache, size_of
from workers.transfer import FetchClock

BLOCK_BYTES = 1 << 20


class DatasetMissing(Exception):
    """A dataset cannot be had on this node. The message names it, and the remedy."""


def place_of(cache: Cache, name: str, source: str) -> Path:
    """Where the dataset is on this node: a file or a folder.

    Raises:
        DatasetMissing: the path does not exist here, or the URL cannot be fetched.
    """
    url = urllib.parse.urlsplit(source)
    if not is_fetched(source):
        path = Path(urllib.parse.unquote(url.path) if url.scheme else source)
        if not path.exists():
            raise DatasetMissing(f"dataset {name}: there is no {path} on this node; put it there, or give a URL")
        return path

    file_name = os.path.basename(urllib.parse.unquote(url.path.rstrip("/"))).lstrip(".") or "data"

    def make(entry: Path) -> Fetch:
        try:
            if url.scheme in ("http", "https"):
                return _fetch(source, entry / file_name)
            return _fetch_with_fsspec(source, url.scheme, entry / file_name)
        except (httpx.HTTPError, OSError, ValueError, ImportError) as error:
            raise DatasetMissing(
                f"dataset {name}: {source} cannot be fetched: {error or type(error).__name__}"
            ) from error

    return cache.get("datasets", dataset_key(source), make) / file_name


def _fetch(url: str, target: Path) -> Fetch:
    clock = FetchClock(source_of(url))
    with httpx.stream("GET", url, follow_redirects=True, timeout=60.0) as response, target.open("wb") as file:
        if not response.is_success:
            raise ValueError(f"the server answers {response.status_code}")
        clock.begin()
        for block in response.iter_bytes(BLOCK_BYTES):
            file.write(block)
            clock.size_bytes += len(block)
    return clock.stop()


def _fetch_with_fsspec(url: str, scheme: str, target: Path) -> Fetch:
    """Fetch by a package that not every node has. Its wait is part of the transfer: no package tells the two apart."""
    try:
        fsspec = importlib.import_module("fsspec.core")
    except ImportError as error:
        raise ValueError(f"this node has no package for {scheme}://; install fsspec and what it needs there") from error
    source, path = fsspec.url_to_fs(url)
    clock = FetchClock(source_of(url))
    source.get(path, str(target), recursive=source.isdir(path))
    if not target.exists():
        raise ValueError("nothing is there")
    clock.size_bytes = size_of(target)
    return clock.stop()
