"""Tables that are held whole in memory, shown a page at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice(Generic[Item]):
    """Page number `page` of `pages`, counted from 1."""

    items: Sequence[Item]
    page: int
    pages: int


def cut(items: Sequence[Item], page: int, size: int) -> Slice[Item]:
    """The page of that number; the last one if there are fewer."""
    pages = max(1, -(-len(items) // size))
    page = min(page, pages)
    return Slice(items=items[(page - 1) * size : page * size], page=page, pages=pages)
