"""What answers of the service mean, delays between tries, and the long poll that rings."""

import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.sync import SyncRequest, SyncResponse
from protocol.version import PROTOCOL_VERSION
from tests.workers.builders import assignment
from tests.workers.fake_service import problem
from workers.exchange import LONGEST_DELAY_S, Backoff, Doorbell, Exchange, Refused, Unavailable
from workers.inventory import take_inventory


@pytest.fixture
def exchange(service):
    one = Exchange(service.address, service.token)
    yield one
    one.close()


def register(exchange):
    report = take_inventory(
        address="127.0.0.1", gpus=[], slots=[0], memory_bytes=None, labels={}, containment="none", containers=(None, "")
    )
    return exchange.register(report)


def request(exchange):
    return SyncRequest(protocol=PROTOCOL_VERSION, incarnation=register(exchange).incarnation)


def test_an_answer_is_a_value(exchange, service):
    service.grant(assignment())
    answer = exchange.sync(request(exchange))
    assert isinstance(answer, SyncResponse)
    assert [item.attempt for item in answer.assignments] == ["a1"]


@pytest.mark.parametrize("status", [404, 429, 500, 502, 503])
def test_what_may_pass_is_a_value_too(exchange, service, status):
    service.refusals = [problem(status, "passing", "not now")]
    assert register(exchange) == Unavailable(message="not now", retry_after_s=0.0)


def test_an_answer_that_cannot_be_read_is_no_answer(exchange, service):
    service.refusals = [(200, problem(200, "x", "y")[1])]
    assert "cannot be read" in register(exchange).message


def test_nobody_listens():
    exchange = Exchange("http://127.0.0.1:1", "secret")
    assert isinstance(register(exchange), Unavailable)
    exchange.close()


@pytest.mark.parametrize(("status", "code"), [(401, 2), (403, 2), (409, 3), (426, 2), (422, 1)])
def test_what_will_not_pass_is_raised(exchange, service, status, code):
    service.refusals = [problem(status, "final", "the reason")]
    with pytest.raises(Refused, match="the reason") as caught:
        register(exchange)
    assert caught.value.exit_code == code


@given(
    wishes=st.lists(st.floats(0, 1e6), min_size=1, max_size=30),
    most_s=st.floats(0.2, LONGEST_DELAY_S),
    seed=st.integers(),
)
def test_delays_grow_to_a_limit_and_scatter(wishes, most_s, seed):
    backoff = Backoff(random.Random(seed))
    for number, wish_s in enumerate(wishes):
        delay_s = backoff.next_delay_s(Unavailable(message="", retry_after_s=wish_s), most_s=most_s)
        due_s = min(most_s, max(wish_s, 0.2 * 2**number))
        assert due_s / 2 <= delay_s <= due_s
    backoff.reset()
    assert backoff.next_delay_s(Unavailable(message="")) <= 0.2


class Listener:
    """What a doorbell rings at."""

    def __init__(self):
        self._rings = threading.Semaphore(0)

    def ring(self):
        self._rings.release()

    def wait(self):
        assert self._rings.acquire(timeout=30)

    def is_silent(self):
        return not self._rings.acquire(blocking=False)


@pytest.fixture
def doorbell(service, exchange):
    incarnation = register(exchange).incarnation
    listener = Listener()
    bell = Doorbell(exchange, listener.ring, random.Random(1))
    bell.begin(incarnation)
    yield bell, listener
    bell.close()
    bell.tell("anything")
    service.set(down=True)
    bell.join(30)
    assert not bell.is_alive()


def held_version(service):
    with service.changed:
        return service._version()


def test_the_bell_rings_when_the_assignments_change_and_not_otherwise(service, doorbell):
    bell, listener = doorbell
    empty = held_version(service)
    bell.tell(empty)
    service.wait_syncs(1)
    service.change(lambda: None)
    assert listener.is_silent()
    service.grant(assignment())
    listener.wait()
    news = bell.news.get_nowait()
    assert [item.attempt for item in news.answer.assignments] == ["a1"]
    assert (news.since, news.answer.version) == (empty, held_version(service))
    polls = service.syncs
    bell.tell(held_version(service))
    service.wait(lambda: service.syncs > polls)
    assert listener.is_silent(), "the agent holds what the service has"


def test_the_bell_does_not_ring_for_what_the_agent_heard_meanwhile(service, doorbell):
    bell, listener = doorbell
    bell.tell(held_version(service))
    service.wait_syncs(1)
    with service.changed:
        service.assignments["a1"] = assignment()
        bell.tell(service._version())
        service.changed.notify_all()
    service.wait_syncs(2)
    assert listener.is_silent()


def test_the_bell_rings_again_after_the_service_was_away(service, doorbell):
    bell, listener = doorbell
    bell.tell(held_version(service))
    service.wait_syncs(1)
    service.set(down=True)
    service.grant(assignment())
    service.set(down=False)
    listener.wait()


def test_a_refusal_in_the_poll_reaches_the_agent(service, doorbell):
    bell, listener = doorbell
    bell.tell(held_version(service))
    service.wait_syncs(1)
    service.change(lambda: setattr(service, "incarnation", 9))
    listener.wait()
    assert bell.refused.exit_code == 3
