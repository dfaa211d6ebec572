"""What an administrator should look at."""

from datetime import datetime

from pydantic import Field

from protocol.base import View


class AlarmView(View):
    """Something that the service cannot put right by itself. It goes away when its cause does."""

    kind: str = Field(description="A stable name, such as `nodes_silent`.")
    subject: str = Field(description="The node it is about; empty if it is about all.")
    message: str = Field(description="What is the matter, and the remedy.")
    raised_at: datetime


class AlarmPage(View):
    """One page of alarms, by kind and subject."""

    items: list[AlarmView]
    next: str | None = None
