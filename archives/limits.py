"""How large an archive may be. Both who packs and who unpacks check."""

from dataclasses import dataclass


class ArchiveError(Exception):
    """An archive cannot be made or must not be unpacked. The message is one line, with the remedy if there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`entries` counts files, folders and links; `packed_bytes` and `unpacked_bytes` are sizes of the whole."""

    entries: int
    packed_bytes: int
    unpacked_bytes: int


CODE = Limits(entries=10_000, packed_bytes=100 << 20, unpacked_bytes=1 << 30)
"""A directory that is shipped with a job."""

OUTPUT = Limits(entries=100_000, packed_bytes=1 << 30, unpacked_bytes=16 << 30)
"""What one member of a job leaves in $ERGON_OUTPUT."""


def show_bytes(size: int) -> str:
    """Such as `1.5 GiB`; sizes below 1 KiB in bytes."""
    for unit, one in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= one:
            return f"{size / one:.1f}".removesuffix(".0") + f" {unit}"
    return f"{size} bytes"
