"""What nodes keep of code and data."""

from collections.abc import Collection, Sequence

from sqlalchemy import Connection, delete, func, insert, select, tuple_

from service.db import Record
from service.models import archives, node_cache

Entry = tuple[str, str]
"""A kind and a key."""


def set_cache(tx: Connection, node_id: str, sizes: dict[Entry, int]) -> set[Entry]:
    """Make these, with their sizes in bytes, and no others the node's entries. Those that are new."""
    ours = select(node_cache.c.kind, node_cache.c.key).where(node_cache.c.node_id == node_id)
    known = {(row.kind, row.key) for row in tx.execute(ours)}
    if gone := known - sizes.keys():
        entry = tuple_(node_cache.c.kind, node_cache.c.key)
        tx.execute(delete(node_cache).where(node_cache.c.node_id == node_id, entry.in_(sorted(gone))))
    fresh = sizes.keys() - known
    if fresh:
        rows = [{"node_id": node_id, "kind": kind, "key": key, "size": sizes[kind, key]} for kind, key in sorted(fresh)]
        tx.execute(insert(node_cache), rows)
    return fresh


def holders(tx: Connection, keys: Collection[str]) -> Sequence[Record]:
    """Who has entries of these keys, of whatever kind: columns `node_id`, `kind`, `key`, `size`."""
    query = select(node_cache).where(node_cache.c.key.in_(keys))
    return tx.execute(query.order_by(node_cache.c.key, node_cache.c.node_id)).all()


def sizes_kept(tx: Connection) -> Sequence[Record]:
    """How much each node keeps, those that keep nothing left out: columns `node_id`, `entries`, `size`."""
    sums = (func.count().label("entries"), func.sum(node_cache.c.size).label("size"))
    return tx.execute(select(node_cache.c.node_id, *sums).group_by(node_cache.c.node_id)).all()


def sizes_of_archives(tx: Connection, digests: Collection[str]) -> dict[str, int]:
    """Bytes of those archives that there are."""
    query = select(archives.c.digest, archives.c.size).where(archives.c.digest.in_(digests))
    return {row.digest: row.size for row in tx.execute(query)}
