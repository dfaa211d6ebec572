"""What a node keeps of code and data for the next attempt, and how it was fetched.

Both ends work out the same keys, so that the service knows of a job that waits which nodes have what it needs.
"""

import hashlib
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, StringConstraints

from protocol.base import Count, Message, Seconds, Text, View

MAX_ENTRIES = 256
"""Entries of one cache that are told of: those used last."""

SERVICE = "service"
"""The source of what the service itself gives out."""

Key = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]+$", max_length=64)]


class Fetch(Message):
    """How something was fetched, once."""

    source: Text = Field(max_length=300, description="`service`, or of a URL what comes before its path.")
    size_bytes: Count = Field(description="What was sent.")
    wait_s: Seconds = Field(description="Until the first of it came.")
    transfer_s: Seconds = Field(description="From then until the last of it had come.")


class CacheEntry(Message):
    """Something that a node has."""

    kind: Literal["archives", "datasets"]
    key: Key = Field(description="The SHA-256 of an archive of code; what `dataset_key` says of a URL.")
    size_bytes: Count = Field(description="What it takes of the disk.")
    fetch: Fetch | None = Field(default=None, description="How it came; absent where its agent did not note it.")


class LinkView(View):
    """How fast a node fetches from one source: a wait, and then so many bytes a second."""

    source: str = Field(description="`service`, or of a URL what comes before its path.")
    wait_s: float = Field(description="Until the first byte, in s.")
    bytes_per_s: float = Field(description="As likely to be more as to be less.")
    spread: float = Field(description="Standard deviation of the logarithm of the speed.")
    fetches: int = Field(description="How many fetches of this node it follows from.")


def is_fetched(dataset: str) -> bool:
    """Whether a job's dataset is a URL that nodes fetch, and not a path that they have."""
    return urlsplit(dataset).scheme not in ("", "file")


def dataset_key(url: str) -> str:
    """What caches call the data at a URL: another URL is other data."""
    return hashlib.sha256(url.encode()).hexdigest()[:32]


def source_of(url: str) -> str:
    """Where the data at a URL comes from: what comes before its path, without a name and password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"[:300]
