"""The report's page tells what energy cost, to each the own part, where an administrator has set prices."""

from pathlib import Path

import pytest

from service.settings import Settings
from tests.service.cluster import Cluster
from tests.service.conftest import SignIn
from tests.service.test_web import text


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, lease_s=60.0, price_per_kwh=1_000.0, currency="SEK", carbon_g_per_kwh=1e5)


def test_costs_are_on_the_page(sign_in: SignIn, cluster: Cluster) -> None:
    cluster.join("n1", slots=4)
    cluster.place(cluster.submit("alice", devices_per_node=2), "n1")
    cluster.advance(3_600)
    root, alice = text(sign_in("root").get("/report")), text(sign_in("alice").get("/report"))
    assert "User Jobs Allocated device-h Energy SEK kg CO2 Energy is" in root
    assert " SEK; " in root
    _, line = alice.split("alice 1 2.00 ")
    kwh, unit, cost, carbon = line.split()[:4]
    assert unit == "Wh"
    assert float(cost) == pytest.approx(float(kwh), rel=0.01)  # a Wh costs 1 SEK
    assert float(carbon) == pytest.approx(float(kwh) / 10, rel=0.01)
