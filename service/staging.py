"""How long nodes take to fetch what jobs need before they start: code from the service, data from URLs.

Agents tell what their caches hold and how each fetch went. What a node lacks takes the wait and the speed of its link
(`scheduler.links`); what it has takes nothing.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from protocol.caches import SERVICE, CacheEntry, LinkView, dataset_key, is_fetched, source_of
from protocol.jobs import InputsView, JobSpec
from scheduler.links import Fetch, Link, fit_links
from scheduler.problem import Staging
from service.db import Record
from service.store import caches as store
from service.store import nodes as node_store

MOST_FETCHES = 8
"""Fetches that are remembered of a node and a source, the latest."""

MOST_SOURCES = 16
"""Sources that are remembered of a node."""

MOST_NAMED = 20

LEAST_S = 1.0
"""What takes less counts as nothing: it is shorter than starting a process that trains."""

LONGEST_S = 86_400.0
"""No fetch is taken to be longer, whatever an agent says of sizes and of times."""

STEP = math.sqrt(2.0)
"""Planned times are rounded to powers of this, so that nodes that take about as long are alike for the planner."""

Wants = tuple[str | None, tuple[str, ...]]
"""What a job needs: the digest of its code, and the URLs of its data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lack:
    """What is still to be fetched, in bytes as far as that is known, and how long that takes in s."""

    size_bytes: int
    seconds: float


NOTHING = Lack(size_bytes=0, seconds=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a node keeps of code and data, and the links that it has fetched over."""

    entries: int = 0
    size_bytes: int = 0
    links: tuple[LinkView, ...] = ()


def wants_of(spec: JobSpec) -> Wants:
    """What a job needs from elsewhere."""
    return spec.code, _fetched(spec.datasets)


def stored_wants(spec: Mapping[str, Any]) -> Wants:
    """The same of a spec as the database has it, which may be of before there were code and datasets."""
    return spec.get("code"), _fetched(spec.get("datasets") or {})


class Stagings:
    """What was asked for, who has it, and how fast the others get it.

    Args:
        nodes: all nodes.
        links: what each fetched from each source, by source and node.
        held: the nodes that have an entry.
        sizes: bytes of each entry, as far as they are known.
    """

    def __init__(
        self,
        nodes: Sequence[str],
        links: Mapping[str, Mapping[str, Sequence[Fetch]]],
        held: Mapping[store.Entry, set[str]],
        sizes: Mapping[store.Entry, int],
    ) -> None:
        self._nodes = nodes
        self._fetches = links
        self._held = held
        self._sizes = sizes
        self._links: dict[str, dict[str, Link]] = {}
        self._slowest_links: dict[str, Link] = {}
        self._planned: dict[Wants, tuple[float, tuple[Staging, ...]]] = {}

    def size_bytes(self, wants: Wants) -> int:
        """All that a job needs, as far as its size is known."""
        return sum(self._sizes.get(entry, 0) for entry, _ in _entries(wants))

    def unsized(self, wants: Wants) -> int:
        """How much of what a job needs has no size yet: data that no node has fetched."""
        return sum(entry not in self._sizes for entry, _ in _entries(wants))

    def lack(self, wants: Wants, node: str) -> Lack:
        """What a node has to fetch. What nobody has fetched yet has no size, and takes a wait."""
        size_bytes, seconds = 0, 0.0
        for entry, source in _entries(wants):
            if node not in self._held.get(entry, ()):
                size = self._sizes.get(entry, 0)
                size_bytes += size
                seconds += self.link(source, node).seconds(size)
        return Lack(size_bytes=size_bytes, seconds=min(seconds, LONGEST_S))

    def holders(self, wants: Wants) -> list[str]:
        """The nodes that lack nothing."""
        return [node for node in self._nodes if not self.lack(wants, node).seconds]

    def link(self, source: str, node: str) -> Link:
        """How a node fetches from a source; as nodes usually do if it never has."""
        if source not in self._links:
            self._links[source] = fit_links(self._fetches.get(source, {}))
        links = self._links[source]
        return links.get(node) or links[""]

    def planned(self, wants: Wants) -> tuple[float, tuple[Staging, ...]]:
        """`Job.stage_s` and `Job.staging` of a job with these wants: the time of most nodes, and of the others."""
        if wants not in self._planned:
            by_time: dict[float, list[str]] = defaultdict(list)
            for node in self._nodes if self._longest_s(wants) >= LEAST_S else ():
                by_time[_rounded(self.lack(wants, node).seconds)].append(node)
            most = max(by_time, key=lambda seconds: (len(by_time[seconds]), seconds), default=0.0)
            others = [Staging(seconds=one, nodes=tuple(by_time[one])) for one in sorted(by_time) if one != most]
            self._planned[wants] = most, tuple(others)
        return self._planned[wants]

    def _longest_s(self, wants: Wants) -> float:
        """How long it takes a node that has nothing over the slowest links, in s: mostly it is too little to matter on
        any of a thousand nodes.
        """
        return sum(self._slowest(source).seconds(self._sizes.get(entry, 0)) for entry, source in _entries(wants))

    def _slowest(self, source: str) -> Link:
        """A link that is as slow as any to this source, in its wait and in its speed."""
        if source not in self._slowest_links:
            self.link(source, "")
            links = self._links[source].values()
            wait_s, bytes_per_s = max(link.wait_s for link in links), min(link.bytes_per_s for link in links)
            self._slowest_links[source] = Link(wait_s=wait_s, bytes_per_s=bytes_per_s, spread=0.0)
        return self._slowest_links[source]

    def left(self, member: Record, now: datetime) -> Lack:
        """What an attempt's node has still to fetch before its run. `member` is a row of `attempts.held_work`."""
        if member.started_at is not None:
            return NOTHING
        lack = self.lack(stored_wants(member.spec), member.node_id)
        gone_s = (now - member.granted_at).total_seconds()
        return Lack(size_bytes=lack.size_bytes, seconds=max(0.0, lack.seconds - gone_s))


def read(tx: Connection, wanted: Iterable[Wants]) -> Stagings:
    """What the database knows of these."""
    entries = {entry for wants in set(wanted) for entry, _ in _entries(wants)}
    if not entries:
        return Stagings((), {}, {}, {})
    held: dict[store.Entry, set[str]] = defaultdict(set)
    sizes: dict[store.Entry, int] = {}
    for row in store.holders(tx, {key for _, key in entries}):
        held[row.kind, row.key].add(row.node_id)
        sizes[row.kind, row.key] = row.size
    for digest, size in store.sizes_of_archives(tx, {key for kind, key in entries if kind == "archives"}).items():
        sizes["archives", digest] = size
    nodes = node_store.list_nodes(tx)
    return Stagings([node.id for node in nodes], _links_of(nodes), held, sizes)


def read_kept(tx: Connection) -> dict[str, Kept]:
    """What each node keeps, and how fast it fetches, by node."""
    nodes = node_store.list_nodes(tx)
    stagings = Stagings((), _links_of(nodes), {}, {})
    sizes = {row.node_id: row for row in store.sizes_kept(tx)}
    return {
        node.id: Kept(
            entries=sizes[node.id].entries if node.id in sizes else 0,
            size_bytes=int(sizes[node.id].size) if node.id in sizes else 0,
            links=tuple(_link_view(source, stagings.link(source, node.id)) for source in sorted(node.links or ())),
        )
        for node in nodes
    }


def take(tx: Connection, node: Record, entries: Sequence[CacheEntry]) -> None:
    """An agent says what its cache holds: all of it, what was used last first."""
    fresh = store.set_cache(tx, node.id, {(entry.kind, entry.key): entry.size_bytes for entry in entries})
    links: dict[str, list[list[float]]] = dict(node.links or {})
    heard: set[str] = set()
    for entry in reversed(entries):
        if (fetch := entry.fetch) is not None and (entry.kind, entry.key) in fresh:
            told = [fetch.size_bytes, round(fetch.wait_s, 4), round(fetch.transfer_s, 4)]
            links[fetch.source] = [*links.get(fetch.source, ()), told][-MOST_FETCHES:]
            heard.add(fetch.source)
    if heard:
        latest = sorted(links, key=lambda source: (source != SERVICE, source not in heard))[:MOST_SOURCES]
        node_store.change_node(tx, node.id, links={source: links[source] for source in latest})


def view(stagings: Stagings, spec: JobSpec, given: Sequence[Record], now: datetime) -> InputsView | None:
    """What a job needs, and what its nodes lack of it, as the API shows it; None where fetching is no matter. `given`
    are the rows of `attempts.held_work` of a job that starts, none of one that waits.
    """
    wants = wants_of(spec)
    unsized, alone = stagings.unsized(wants), stagings.lack(wants, "")
    if not unsized and alone.seconds < LEAST_S:
        return None
    lacks = [stagings.left(member, now) for member in given] or [alone]
    return InputsView(
        size_bytes=stagings.size_bytes(wants),
        unsized=unsized,
        nodes=stagings.holders(wants)[:MOST_NAMED],
        missing_bytes=max(lack.size_bytes for lack in lacks),
        fetch_s=max(lack.seconds for lack in lacks),
    )


def _link_view(source: str, link: Link) -> LinkView:
    return LinkView(
        source=source,
        wait_s=link.wait_s,
        bytes_per_s=link.bytes_per_s,
        spread=link.spread,
        fetches=link.fetches,
    )


def _fetched(datasets: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(sorted({source for source in datasets.values() if is_fetched(source)}))


def _entries(wants: Wants) -> list[tuple[store.Entry, str]]:
    """What is wanted, as caches call it, and where each comes from."""
    code, urls = wants
    found: list[tuple[store.Entry, str]] = [(("archives", code), SERVICE)] if code else []
    return found + [(("datasets", dataset_key(url)), source_of(url)) for url in urls]


def _links_of(nodes: Sequence[Record]) -> dict[str, dict[str, list[Fetch]]]:
    found: dict[str, dict[str, list[Fetch]]] = defaultdict(dict)
    for node in nodes:
        links: dict[str, list[Any]] = node.links or {}
        for source, fetches in links.items():
            found[source][node.id] = [
                Fetch(size_bytes=size, wait_s=wait_s, transfer_s=transfer_s) for size, wait_s, transfer_s in fetches
            ]
    return found


def _rounded(seconds: float) -> float:
    if seconds < LEAST_S:
        return 0.0
    return round(STEP ** round(math.log(seconds, STEP)), 3)
