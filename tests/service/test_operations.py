"""What docs/operations.md lists is what there is. Its commands are run by `tests/docs`."""

import re
from pathlib import Path

from fastapi.testclient import TestClient

from protocol.environment import SERVICE_VARIABLES
from service.alarms import Alarm
from service.settings import Settings
from tests.service.cluster import Cluster
from tests.service.test_cycle import new_cycle

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
OF_THE_SYSTEM = {"data_dir": "/var/lib/ergon for root, else ~/.local/share/ergon"}


def default(variable: str) -> str:
    name = variable.removeprefix("ERGON_").lower()
    value = Settings.model_fields[name].default
    if name in OF_THE_SYSTEM or isinstance(value, bool | None):
        return OF_THE_SYSTEM.get(name, "")
    if isinstance(value, tuple):
        return ",".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_every_setting_is_in_the_table_with_its_default() -> None:
    rows = [f"| `{variable}` | {default(variable)} | {text} |" for variable, text in SERVICE_VARIABLES.items()]
    assert re.findall(r"^\| `ERGON_.*", PAGE.partition("## Settings")[2].partition("\n### ")[0], re.MULTILINE) == rows


def test_every_metric_is_in_the_table(cluster: Cluster, client: TestClient) -> None:
    cluster.join("n1")
    cluster.submit()
    new_cycle(cluster).step(woken=True)
    text = client.get("/metrics").text
    assert set(re.findall(r"^\| `(ergon_\w+)`", PAGE, re.MULTILINE)) == set(
        re.findall(r"^# TYPE (\w+)", text, re.MULTILINE)
    )


def test_every_alarm_is_explained() -> None:
    assert set(re.findall(r"^\| alarm `(\w+)`", PAGE, re.MULTILINE)) == {kind.value for kind in Alarm}
