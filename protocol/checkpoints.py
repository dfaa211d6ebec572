"""Checkpoints that nodes without a shared folder keep with the service: what a rank wrote, file by file.

And whose folders may go where nodes share one.
"""

from typing import Annotated

from pydantic import Field, StringConstraints, field_validator

from protocol.base import Count, Index, Message, Name, View
from protocol.jobs import Digest

MAX_FILES = 10_000
"""Files of one rank in one checkpoint."""
MAX_PATH = 1_024
MAX_FOLDERS = 1_000
"""Folders that an agent asks about at a time."""

FilePath = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$", min_length=1, max_length=MAX_PATH)]


class CheckpointFile(Message):
    """One file of one rank."""

    path: FilePath = Field(description="Relative to the rank's folder.")
    size: Count = Field(description="In bytes.")
    sha256: Digest

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        if any(part in ("", ".", "..") for part in path.split("/")):
            raise ValueError("give a plain path inside the rank's folder, such as `model/weights.pt`")
        return path


class CheckpointPart(Message):
    """What one rank has saved at one step, its manifest included."""

    world_size: int = Field(ge=1, lt=2**31, description="Ranks of the gang: with so many parts it is complete.")
    files: list[CheckpointFile] = Field(max_length=MAX_FILES)


class PartAnswer(View):
    """What is still to be sent. A part is stored once nothing is."""

    missing: list[Digest] = Field(description="Files that the service does not hold yet, each once.")
    complete: bool = Field(
        default=True, description="Every rank's files of this step have arrived, or it is not wanted any more."
    )
    begun: Count | None = Field(
        default=None,
        description="Newest step that other nodes of the gang have begun to bring and this rank has not brought.",
    )


class StoredPart(View):
    """What one rank has saved."""

    rank: Index
    files: list[CheckpointFile]


class StoredCheckpoint(View):
    """A complete checkpoint that the service holds, by rank."""

    parts: list[StoredPart]


class KeptFolders(Message):
    """An agent has found these folders of jobs among the checkpoints that all nodes share."""

    jobs: list[Name] = Field(max_length=MAX_FOLDERS)


class ExpiredFolders(View):
    """Those that nobody needs any more."""

    jobs: list[str] = Field(
        description="Jobs that ended more than `ERGON_KEEP_OUTPUT_DAYS` ago and hold nothing; one that the service "
        "does not know is not among them."
    )
