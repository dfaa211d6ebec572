"""Power caps are put back whatever happens. The driver is a fake one: none of this ran on a GPU."""

import os
import signal
from pathlib import Path

import pynvml
import pytest

from protocol.states import AttemptState, EndReason
from tests.workers.builders import assignment, gpu
from tests.workers.fake_driver import UUIDS, Driver
from workers.caps import CannotCap, Caps

ROOT = Path(__file__).parents[2]
BOTH = [gpu(uuid, index) for index, uuid in enumerate(UUIDS)]


@pytest.fixture
def driver(tmp_path, monkeypatch):
    made = Driver(tmp_path / "driver.json")
    for name, answer in made.answers().items():
        monkeypatch.setattr(pynvml, name, answer)
    return made


def test_a_cap_is_put_back_when_its_attempt_is_over_also_by_another_process(driver, tmp_path):
    Caps(tmp_path).apply("a1", ["GPU-1"], 266.0)
    assert driver.limits() == {"GPU-1": 266.0, "GPU-2": 400.0}
    again = Caps(tmp_path)
    again.settle({"a1", "a2"})
    assert driver.limits()["GPU-1"] == 266.0
    assert again.usual_w("GPU-1") == 400.0, "what the inventory tells is not the cap"
    again.settle({"a2"})
    assert driver.limits()["GPU-1"] == 400.0
    driver.change(GPU_1=266.0)
    Caps(tmp_path).settle(set())
    assert driver.limits()["GPU-1"] == 266.0, "it is put back once, and then somebody else's"


def test_a_limit_that_somebody_else_or_a_boot_has_changed_is_left_alone(driver, tmp_path):
    caps = Caps(tmp_path)
    caps.apply("a1", UUIDS, 266.0)
    driver.change(GPU_1=350.0)
    caps.settle(set())
    assert driver.limits() == {"GPU-1": 350.0, "GPU-2": 400.0}


def test_a_limit_is_never_raised_and_the_first_one_is_put_back(driver, tmp_path):
    driver.change(GPU_1=200.0)
    caps = Caps(tmp_path)
    caps.apply("a1", UUIDS, 266.0)
    assert driver.limits() == {"GPU-1": 200.0, "GPU-2": 266.0}
    caps.apply("a2", UUIDS, 220.0)  # of the first one something was left
    caps.settle(set())
    assert driver.limits() == {"GPU-1": 200.0, "GPU-2": 400.0}


def test_what_may_be_capped_is_tried_out(driver, tmp_path):
    assert Caps(tmp_path).able(UUIDS) == {"GPU-1": 100.0, "GPU-2": 100.0}
    driver.change(allowed=False)
    assert Caps(tmp_path).able(UUIDS) == {}
    with pytest.raises(CannotCap, match="power limit of GPU GPU-1 cannot be set to 266 W"):
        Caps(tmp_path).apply("a1", UUIDS, 266.0)


def test_a_limit_that_cannot_be_put_back_now_is_put_back_later(driver, tmp_path):
    caps = Caps(tmp_path)
    caps.apply("a1", ["GPU-1"], 266.0)
    driver.change(allowed=False)
    caps.settle(set())
    driver.change(allowed=True)
    Caps(tmp_path).settle(set())
    assert driver.limits()["GPU-1"] == 400.0


def start(agent, driver):
    patch = f"sys.path.insert(0, {str(ROOT)!r})\nfrom tests.workers.fake_driver import Driver\n"
    return agent(patch=f"{patch}Driver({str(driver.path)!r}).install()").wait_ready()


def test_ranks_run_under_the_cap_and_the_limit_is_as_before_when_the_end_is_told(service, agent, gate, driver):
    hold = gate()
    service.grant(assignment(command=hold.script(), devices=BOTH, cap_w=266.0))
    start(agent, driver)
    hold.wait_up()
    assert driver.limits() == {"GPU-1": 266.0, "GPU-2": 266.0}
    assert service.caps == [{"GPU-1": 100.0, "GPU-2": 100.0}]
    assert [device.power_limit_w for device in service.registrations[0].devices[:2]] == [400.0, 400.0]
    hold.open()
    service.wait_state("a1", AttemptState.ENDED)
    assert driver.limits() == {"GPU-1": 400.0, "GPU-2": 400.0}


@pytest.mark.parametrize("survives", [True, False])
def test_an_agent_that_was_killed_leaves_caps_to_the_next_one(service, agent, gate, driver, survives):
    """With the supervisor killed as well, nothing of the attempt is left to go on."""
    hold = gate()
    service.grant(assignment(command=hold.script(), devices=BOTH, cap_w=266.0))
    one = start(agent, driver)
    hold.wait_up()
    service.wait_state("a1", AttemptState.RUNNING)
    supervisor = one.supervisor("a1")
    one.kill()
    if not survives:
        os.kill(supervisor, signal.SIGKILL)
    start(agent, driver)
    if survives:
        assert driver.limits()["GPU-1"] == 266.0
        assert service.registrations[-1].devices[0].power_limit_w == 400.0
        hold.open()
    service.wait_state("a1", AttemptState.ENDED)
    assert driver.limits() == {"GPU-1": 400.0, "GPU-2": 400.0}


def test_a_limit_that_cannot_be_set_is_told_and_nothing_is_started(service, agent, driver):
    start(agent, driver)
    service.wait(lambda: service.caps)
    driver.change(allowed=False)
    service.grant(assignment(command=["true"], devices=BOTH, cap_w=266.0))
    report = service.wait_state("a1", AttemptState.ENDED)
    assert report.reason == EndReason.UNKNOWN_START
    assert "the power limit of GPU GPU-1 cannot be set to 266 W" in report.message
    service.wait(lambda: service.caps[-1] == {})


def test_a_service_that_does_not_know_caps_is_told_none(service, agent, driver):
    service.knows_caps = False
    service.grant(assignment(command=["true"]))
    start(agent, driver)
    service.wait_forgotten("a1")
    assert service.caps == []
