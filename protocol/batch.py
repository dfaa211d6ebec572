"""Many jobs in one request, and what would become of them."""

from pydantic import Field

from protocol.base import Message, View
from protocol.jobs import MAX_BATCH, JobSpec, VerdictView

MAX_DRY_RUN = 100
"""Jobs that one dry run weighs."""


class BatchRequest(Message):
    """Jobs to be submitted together: all are taken or none is."""

    jobs: list[JobSpec] = Field(min_length=1, max_length=MAX_BATCH)


class BatchItem(View):
    """What one spec of a batch became."""

    id: str = Field(description="Id of the job; of the array, if the spec asks for one.")
    verdict: VerdictView | None = Field(default=None, description="The first word of the planner.")


class BatchView(View):
    """One item for each spec, in the order of the request."""

    items: list[BatchItem]


class DryRunRequest(Message):
    """Jobs that are not submitted, but weighed as if they were."""

    jobs: list[JobSpec] = Field(min_length=1, max_length=MAX_DRY_RUN)


class DryRunItem(View):
    """What would become of one spec."""

    spec: JobSpec = Field(description="The spec as it would be stored, with every default filled in.")
    verdict: VerdictView = Field(
        description="`placed`: it would start now. `waiting`: with the reasons. `impossible`: not on the present nodes."
    )
    nodes: list[str] = Field(default=[], description="Where it would start. The first job of an array stands for all.")


class DryRunView(View):
    """One item for each spec, in the order of the request. Nothing has been submitted."""

    items: list[DryRunItem]
