"""The line a rank writes to report progress, one JSON object per line in the file `$ERGON_PROGRESS`."""

from pydantic import Field

from protocol.base import View
from protocol.jobs import Argument


class ProgressLine(View):
    """What a rank has reached. Every field is optional; unknown ones are ignored."""

    step: int | None = Field(default=None, ge=0)
    total_steps: int | None = Field(default=None, ge=0)
    epoch: int | None = Field(default=None, ge=0)
    total_epochs: int | None = Field(default=None, ge=0)
    metrics: dict[Argument, float] = Field(default={}, max_length=100)
