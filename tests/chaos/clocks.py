"""Wall clocks of single processes that jump, by libfaketime; clocks that count the time since boot are left alone."""

from pathlib import Path

PATIENCE = Path(__file__).parent / "patience"
LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


def with_clock(file: Path) -> dict[str, str]:
    """What makes a process, and its children, read their wall clock through `file`."""
    set_clock(file, 0.0)
    return {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_CACHE_DURATION": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "PYTHONPATH": str(PATIENCE),
    }


def set_clock(file: Path, seconds: float) -> None:
    """So far ahead of the true time, or behind it; seen within a second. A file half written shows no time at all."""
    new = file.with_suffix(".new")
    new.write_text(f"{seconds:+.0f}\n")
    new.replace(file)
