"""The checkpoint that an attempt goes on from, fetched from the service before its ranks start."""

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from archives.limits import show_bytes
from ergon.checkpoints import Mark, is_part_intact
from protocol.checkpoints import StoredPart
from workers.transfer import Transfer, TransferFailed

Patience = Callable[[Callable[[], object]], object]
"""Makes a call, again while the service does not answer; what it said."""


def fetch_checkpoint(transfer: Transfer, attempt: str, folder: Path, mark: Mark, *, patient: Patience) -> None:
    """Put the checkpoint into the job's folder, as far as it is not there. Every file is verified.

    Raises:
        TransferRefused, TransferFailed, OSError.
    """
    found: list[StoredPart] = []
    patient(lambda: found.extend(transfer.stored_checkpoint(attempt, mark.epoch, mark.step).parts))
    size = sum(file.size for part in found for file in part.files)
    sys.stderr.write(
        f"ergon: fetching the checkpoint of step {mark.step} of attempt {mark.epoch} ({show_bytes(size)})\n"
    )
    sys.stderr.flush()
    target = folder / mark.folder
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    for part in found:
        if not is_part_intact(target, mark, rank=part.rank, world_size=len(found)):
            _fetch_part(transfer, attempt, target, part, patient)
            if not is_part_intact(target, mark, rank=part.rank, world_size=len(found)):
                raise TransferFailed(f"what rank {part.rank} saved at step {mark.step} is not as it was written")


def _fetch_part(transfer: Transfer, attempt: str, target: Path, part: StoredPart, patient: Patience) -> None:
    """Into a folder beside, then into its place in one go."""
    draft = Path(tempfile.mkdtemp(prefix=f".rank-{part.rank}.", dir=target))
    try:
        for file in part.files:
            place = draft / file.path
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

            def download(place: Path = place, digest: str = file.sha256) -> None:
                with place.open("wb") as opened:
                    transfer.download_file(attempt, digest, opened)

            patient(download)
        place = target / f"rank-{part.rank}"
        shutil.rmtree(place, ignore_errors=True)
        draft.rename(place)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
