"""What the service itself says of a job that waits, where the planner has no word yet."""

from datetime import datetime, timedelta

from protocol.jobs import Reason, VerdictView
from scheduler.ahead import LEAST_SAVING
from scheduler.plan import Later
from service.tariffs import Tariff, saved_by

NOT_WEIGHED_YET = Reason(code="not_weighed_yet", message="the next planning cycle weighs it")
ROOM_IS_MADE = Reason(code="room_is_made", message="jobs are moved away to make room for it; it starts when they have")
NODES_BOOT = Reason(code="nodes_boot", message="nodes are switched on for it; it starts when their agents are heard")
MAY_RUN_UNHEARD = Reason(
    code="held",
    message="with `on_disconnect: wait` it may run on a node that the restored service has not heard: once every node "
    "was heard or is known to be off, `ergon release` lets it start",
)
HELD = Reason(code="held", message="it is held until somebody releases it; `ergon release` does")


def array_limit(limit: int) -> Reason:
    """Why a job of an array is not weighed."""
    return Reason(code="array_limit", message=f"of its array at most {limit} may run at a time")


def backing_off(sentence: str, not_before: datetime) -> Reason:
    """Why a job that goes back to the queue is not weighed at once; `sentence` is the end of its last attempt."""
    when = f"{not_before:%Y-%m-%d %H:%M:%S} UTC"
    return Reason(code="backing_off", message=f"{sentence}; the next attempt starts at {when} or later")


def cheaper_later(later: Later, at: datetime, tariff: Tariff) -> Reason:
    """Why a job that may wait does not start in the plan of `at`."""
    when = f"{at + timedelta(seconds=later.start_s):%Y-%m-%d %H:%M} UTC"
    if saved_by(tariff) == "price":
        kwh, verb, rest = f"a kWh costs {later.per_kwh:.3g} {tariff.currency}", "cost", "less"
    else:
        kwh, verb, rest = f"a kWh means {later.per_kwh:.3g} g of CO2", "mean", "less CO2"
    message = f"it may wait, and is planned for {when}, when {kwh}"
    if later.saving >= LEAST_SAVING:
        message += f": its energy is expected to {verb} {later.saving:.0%} {rest} than now"
    if later.full:
        message += "; better hours are full"
    return Reason(code="cheaper_later", message=message)


def waiting(*reasons: Reason, cycle: int | None = None) -> dict[str, object]:
    """A verdict as the table `jobs` keeps it."""
    return VerdictView(outcome="waiting", reasons=list(reasons), cycle=cycle).model_dump(mode="json")
