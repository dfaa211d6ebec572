"""The file of power pools: what is accepted arrives, what is not is named with its place and the remedy."""

from pathlib import Path

import pytest

from service.power_pools import PowerPool, pool_of
from service.settings import Settings, SettingsError

GPU = """
[pools.gpu]
nodes = ["gpu-*", "big"]
on = ["ipmitool", "-H", "{address}", "power", "on"]
off = ["ssh", "root@{name}", "poweroff"]
"""


def read(folder: Path, text: str) -> tuple[PowerPool, ...]:
    path = folder / "pools.toml"
    path.write_text(text, encoding="utf-8")
    return Settings.from_environment({"ERGON_DATA_DIR": "/srv", "ERGON_POWER_POOLS": str(path)}).power_pools


def test_a_file_says_which_nodes_are_switched_and_how(tmp_path: Path) -> None:
    gpu, rest = read(tmp_path, GPU + '[pools.rest]\nnodes = ["*"]\non = ["a"]\noff = ["b"]\nwarm = 2\nidle_s = 60\n')
    assert (rest.warm, rest.idle_s) == (2, 60.0)
    assert [pool_of((gpu, rest), name) for name in ("gpu-1", "big", "bigger")] == [gpu, gpu, rest]
    assert pool_of((gpu,), "bigger") is None
    assert gpu.command(on=True, name="gpu-1", address="10.0.0.1") == ["ipmitool", "-H", "10.0.0.1", "power", "on"]
    assert gpu.command(on=False, name="gpu-1", address="fe80::1%eth0") == ["ssh", "root@gpu-1", "poweroff"]


def test_an_address_that_a_command_would_take_for_an_option_goes_into_none(tmp_path: Path) -> None:
    (gpu,) = read(tmp_path, GPU)
    for address in ("-oProxyCommand=sh", "a b", ""):
        with pytest.raises(ValueError, match="is no host's"):
            gpu.command(on=True, name="gpu-1", address=address)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[pools.gpu", "is no TOML"),
        ("[pool.gpu]\n", "pool: there are tables"),
        ("pools = 3\n", "pools: there are tables"),
        ("[pools]\ngpu = 3\n", "pools.gpu: must be a table"),
        ('[pools.gpu]\nnodes = ["a"]\non = ["b"]\n', "pools.gpu.off: Field required"),
        (GPU + "warmth = 1\n", "warmth: Extra inputs are not permitted"),
        (GPU + "boots_per_hour = 0\n", "boots_per_hour: Input should be greater than or equal to 1"),
        (GPU.replace("{address}", "{host}"), "on: {host} is unknown; there are {name} and {address}"),
        (GPU.replace("{address}", "{name.real}"), "{name.real} is unknown"),
        (GPU.replace("{address}", "{name!r}"), "{name!r} is unknown"),
        (GPU.replace("{address}", "{"), "write {{ for a brace"),
    ],
)
def test_what_makes_no_sense_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(SettingsError) as raised:
        read(tmp_path, text)
    assert str(raised.value).startswith(f"ERGON_POWER_POOLS: {tmp_path}/pools.toml")
    assert complaint in str(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere.toml cannot be read .*name a TOML file"):
        Settings.from_environment({"ERGON_DATA_DIR": "/srv", "ERGON_POWER_POOLS": str(tmp_path / "nowhere.toml")})


def test_the_page_says_what_there_is(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "power.md").read_text(encoding="utf-8")
    (pool,) = read(tmp_path, page.partition("```toml\n")[2].partition("```")[0])
    assert (pool.name, pool.warm) == ("gpu", 1)
    for name, field in PowerPool.model_fields.items():
        assert f"`{name}`" in page or name == "name"
        if not field.is_required():
            assert f"| `{name}` | {field.default:g} |" in page
