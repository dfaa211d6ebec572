"""Datasets of a job: paths of the node, and URLs that are fetched once and kept."""

import hashlib
import importlib
import os
import urllib.parse
from pathlib import Path

import httpx

from workers.cache import Cache

BLOCK_BYTES = 1 << 20


class DatasetMissing(Exception):
    """A dataset cannot be had on this node. The message names it, and the remedy."""


def place_of(cache: Cache, name: str, source: str) -> Path:
    """Where the dataset is on this node: a file or a folder.

    Raises:
        DatasetMissing: the path does not exist here, or the URL cannot be fetched.
    """
    url = urllib.parse.urlsplit(source)
    if not url.scheme or url.scheme == "file":
        path = Path(urllib.parse.unquote(url.path) if url.scheme else source)
        if not path.exists():
            raise DatasetMissing(f"dataset {name}: there is no {path} on this node; put it there, or give a URL")
        return path

    file_name = os.path.basename(urllib.parse.unquote(url.path.rstrip("/"))).lstrip(".") or "data"

    def make(entry: Path) -> None:
        try:
            if url.scheme in ("http", "https"):
                _fetch(source, entry / file_name)
            else:
                _fetch_with_fsspec(source, url.scheme, entry / file_name)
        except (httpx.HTTPError, OSError, ValueError, ImportError) as error:
            raise DatasetMissing(
                f"dataset {name}: {source} cannot be fetched: {error or type(error).__name__}"
            ) from error

    key = hashlib.sha256(source.encode()).hexdigest()[:32]
    return cache.get("datasets", key, make) / file_name


def _fetch(url: str, target: Path) -> None:
    with httpx.stream("GET", url, follow_redirects=True, timeout=60.0) as response, target.open("wb") as file:
        if not response.is_success:
            raise ValueError(f"the server answers {response.status_code}")
        for block in response.iter_bytes(BLOCK_BYTES):
            file.write(block)


def _fetch_with_fsspec(url: str, scheme: str, target: Path) -> None:
    """Fetch by a package that not every node has."""
    try:
        fsspec = importlib.import_module("fsspec.core")
    except ImportError as error:
        raise ValueError(f"this node has no package for {scheme}://; install fsspec and what it needs there") from error
    source, path = fsspec.url_to_fs(url)
    source.get(path, str(target), recursive=source.isdir(path))
    if not target.exists():
        raise ValueError("nothing is there")
