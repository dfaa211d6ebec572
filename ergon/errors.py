"""What can go wrong for a caller of the service. Every message is one line, with the remedy where there is one."""

from protocol.errors import ErrorBody


class ErgonError(Exception):
    """The root of everything that the SDK and the `ergon` command raise on purpose."""

    exit_code = 2
    """What the `ergon` command exits with."""

    details: tuple[str, ...] = ()
    """More lines, for people."""


class NotConfigured(ErgonError):
    """The server's address or the token is not known, or cannot be used."""


class Unreachable(ErgonError):
    """Nothing answered in the time allowed, or what answered said to come back later."""

    exit_code = 3


class UnexpectedAnswer(ErgonError):
    """Something answered that does not speak Ergon's protocol, or the service itself went wrong.

    `status` is the HTTP status of an answer whose body is none of ours.
    """

    exit_code = 3

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class RequestRefused(ErgonError):
    """The service said no (a status of 4xx). `body` is what it said, `status` the HTTP status."""

    def __init__(self, body: ErrorBody, status: int) -> None:
        unsaid = [error for error in body.errors if error.message not in body.detail]
        fields = "; ".join(f"{error.field}: {error.message}" for error in unsaid)
        super().__init__(f"{body.detail} ({fields})" if fields else body.detail)
        self.body = body
        self.status = status

    @property
    def type(self) -> str:
        """The stable name of the kind of refusal, such as `urn:ergon:job-ended`."""
        return self.body.type


class Unauthorised(RequestRefused):
    """The token is missing, unknown, or not allowed to do this (401, 403)."""


class NotFound(RequestRefused):
    """There is no such thing, or it is somebody else's (404)."""


class WaitTimedOut(ErgonError):
    """The job had not ended when the time to wait was over. It goes on."""
