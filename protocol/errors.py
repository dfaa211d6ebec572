"""Errors as `application/problem+json` (RFC 9457), the one shape in which the service says no."""

from pydantic import Field

from protocol.base import View, example

PROBLEM_MEDIA_TYPE = "application/problem+json"


class FieldError(View):
    """One field of the request that cannot be accepted."""

    field: str = Field(description="Path of the field in the request, such as `spec.nodes` or `query.limit`.")
    message: str = Field(description="What is wrong with it, and what would be accepted.")


class ErrorBody(View):
    """The body of every answer with status 4xx or 5xx."""

    model_config = example(
        type="urn:ergon:unknown-job",
        title="No such job",
        status=404,
        detail="there is no job 'job-1'; `ergon jobs` lists yours",
        errors=[],
    )

    type: str = Field(description="A stable name for this kind of error, such as `urn:ergon:unknown-job`.")
    title: str = Field(description="The kind of error in a few words.")
    status: int = Field(description="The HTTP status, repeated.")
    detail: str = Field(description="What happened this time, and the remedy.")
    errors: list[FieldError] = Field(default=[], description="The fields at fault, if fields are at fault.")
