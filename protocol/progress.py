"""The line a rank writes to report progress, one JSON object per line in the file `$ERGON_PROGRESS`."""

from pydantic import Field

from protocol.base import Count, View
from protocol.jobs import Argument


class ProgressLine(View):
    """What a rank has reached. Every field is optional; unknown ones are ignored."""

    step: Count | None = None
    total_steps: Count | None = None
    epoch: Count | None = None
    total_epochs: Count | None = None
    metrics: dict[Argument, float] = Field(default={}, max_length=100)
