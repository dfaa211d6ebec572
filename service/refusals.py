"""Every way in which the service says no on purpose. One handler turns them into problem+json."""

from collections.abc import Sequence

from protocol.errors import FieldError


class Refusal(Exception):
    """Expected: the request cannot be granted. Subclasses fix status, type and title."""

    status = 400
    kind = "refused"
    title = "The request was refused"

    def __init__(self, detail: str, *, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = list(errors)


class Unauthorised(Refusal):
    status = 401
    kind = "unauthorised"
    title = "No valid token"


class Forbidden(Refusal):
    status = 403
    kind = "forbidden"
    title = "Not allowed"


class UnknownJob(Refusal):
    status = 404
    kind = "unknown-job"
    title = "No such job"


class UnknownNode(Refusal):
    status = 404
    kind = "unknown-node"
    title = "No such node"


class NodeHeard(Refusal):
    status = 409
    kind = "node-heard"
    title = "The node is not down"


class NotSwitchable(Refusal):
    status = 409
    kind = "not-switchable"
    title = "The node cannot be switched now"


class StaleReport(Refusal):
    status = 410
    kind = "stale-report"
    title = "A later report has arrived"


class UnknownCycle(Refusal):
    status = 404
    kind = "unknown-cycle"
    title = "No such cycle"


class UnknownUser(Refusal):
    status = 404
    kind = "unknown-user"
    title = "No such user"


class UnknownToken(Refusal):
    status = 404
    kind = "unknown-token"
    title = "No such token"


class UserExists(Refusal):
    status = 409
    kind = "user-exists"
    title = "There is a user of this name"


class LastAdmin(Refusal):
    status = 409
    kind = "last-admin"
    title = "No administrator could call any more"


class JoinTokenSpent(Refusal):
    status = 409
    kind = "join-token-spent"
    title = "The join token is not good any more"


class NodeTaken(Refusal):
    status = 409
    kind = "node-taken"
    title = "The node has a credential already"


class UnknownArray(Refusal):
    status = 404
    kind = "unknown-array"
    title = "No such array"


class JobEnded(Refusal):
    status = 409
    kind = "job-ended"
    title = "The job has ended"


class JobWaits(Refusal):
    status = 409
    kind = "job-waits"
    title = "The job has no devices"


class JobStarted(Refusal):
    status = 409
    kind = "job-started"
    title = "The job has started"


class NotEnded(Refusal):
    status = 409
    kind = "job-not-ended"
    title = "The job has not ended"


class UnknownArchive(Refusal):
    status = 404
    kind = "unknown-archive"
    title = "No such archive"


class UnknownAttempt(Refusal):
    status = 404
    kind = "unknown-attempt"
    title = "No such attempt on this node"


class UnknownOutput(Refusal):
    status = 404
    kind = "unknown-output"
    title = "No such output"


class OutputExists(Refusal):
    status = 409
    kind = "output-exists"
    title = "Another output was stored before"


class ArchiveQuota(Refusal):
    status = 422
    kind = "archive-quota"
    title = "There is no room for more code"


class UnknownCheckpoint(Refusal):
    status = 404
    kind = "unknown-checkpoint"
    title = "No such checkpoint"


class CheckpointQuota(Refusal):
    status = 422
    kind = "checkpoint-quota"
    title = "There is no room for more checkpoints"


class StaleIncarnation(Refusal):
    status = 409
    kind = "stale-incarnation"
    title = "Another agent has registered as this node"


class AnotherMachine(Refusal):
    status = 409
    kind = "another-machine"
    title = "Another machine is this node"


class DeviceTaken(Refusal):
    status = 409
    kind = "device-taken"
    title = "Another node offers this device"


class Invalid(Refusal):
    status = 422
    kind = "invalid"
    title = "The request is not valid"


class Impossible(Refusal):
    status = 422
    kind = "impossible"
    title = "No present node could run the job"


class IdempotencyMismatch(Refusal):
    status = 422
    kind = "idempotency-mismatch"
    title = "The idempotency key was used for another request"


class ProtocolMismatch(Refusal):
    status = 426
    kind = "protocol"
    title = "The versions do not fit together"


class UnknownIncarnation(Refusal):
    status = 410
    kind = "unknown-incarnation"
    title = "The registration is not known any more"


class NoSpace(Refusal):
    status = 507
    kind = "no-space"
    title = "The disk of the service is full"


class Unavailable(Refusal):
    status = 503
    kind = "unavailable"
    title = "The service cannot answer now"


"""Sent with Retry-After."""
