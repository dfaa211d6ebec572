"""Job files: what they mean, and one clear line with file, line and field for what they cannot mean."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ergon.cli.jobfile import MAX_FILE_BYTES, JobFileError, read_jobs, schema
from protocol.jobs import ArraySpec, Dependency, JobSpec, Recipe

SCHEMA = Path(__file__).parents[2] / "docs" / "job.schema.json"


def read(folder: Path, text: str | bytes, name: str = "job.yaml") -> list[JobSpec]:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_jobs(path)


def refused(folder: Path, text: str | bytes, name: str = "job.yaml") -> tuple[str, tuple[str, ...]]:
    """The message without the folder, and the further lines."""
    with pytest.raises(JobFileError) as caught:
        read(folder, text, name)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(f"{folder}/", ""), caught.value.details


FULL = JobSpec(
    name="sweep",
    command=["python", "train.py", "--lr", "0.10", "--on", "on", "1e-3"],
    env={"SEED": "1", "DEBUG": "no"},
    nodes=2,
    device_kinds=["h100"],
    memory_bytes_per_node=4 << 30,
    disk_bytes_per_node=20 << 30,
    time_limit_s=7200,
    stall_timeout_s=540,
    expected_run_s=90,
    array=ArraySpec(count=6, limit=2),
    after=[Dependency(job="job-1", on="end"), Dependency(job="array-2")],
    max_retries=3,
)


def test_yaml(tmp_path: Path) -> None:
    text = """
    # the fields of one job
    name: sweep
    command: [python, train.py, --lr, 0.10, --on, on, 1e-3]
    env: {SEED: 1, DEBUG: no}
    nodes: 2
    device_kinds: [h100]
    memory: 4GiB
    disk: 20GiB
    time_limit: 2h
    stall_timeout: 9m
    expected_run: 90s
    array: {count: 6, limit: 2}
    after:
      - {job: job-1, on: end}
      - job: array-2
    max_retries: 3
    """
    assert read(tmp_path, text) == [FULL]


def test_toml(tmp_path: Path) -> None:
    text = """
    name = "sweep"
    command = ["python", "train.py", "--lr", "0.10", "--on", "on", "1e-3"]
    env = {SEED = "1", DEBUG = "no"}
    nodes = 2
    device_kinds = ["h100"]
    memory = "4GiB"
    disk = "20GiB"
    time_limit = "2h"
    stall_timeout = "9m"
    expected_run = "90s"
    max_retries = 3
    [array]
    count = 6
    limit = 2
    [[after]]
    job = "job-1"
    on = "end"
    [[after]]
    job = "array-2"
    """
    assert read(tmp_path, text, "job.toml") == [FULL]


def test_json_is_yaml(tmp_path: Path) -> None:
    assert read(tmp_path, FULL.model_dump_json(exclude_defaults=True), "job.json") == [FULL]


def test_a_list_of_jobs_with_shared_parts(tmp_path: Path) -> None:
    text = """
    jobs:
      - &base {name: a, recipe: {name: digits-mlp, options: {epochs: 3, lr: 0.5, fast: true}}, nodes: 2}
      - {<<: *base, name: b}
      - {name: c, command: [a]}
    """
    recipe = Recipe(name="digits-mlp", options={"epochs": 3, "lr": 0.5, "fast": True})
    assert read(tmp_path, text) == [
        JobSpec(name="a", recipe=recipe, nodes=2),
        JobSpec(name="b", recipe=recipe, nodes=2),
        JobSpec(name="c", command=["a"]),
    ]


BOMB = "a: &a [x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("command: [a]\nnodess: 2\n", "job.yaml:2: nodess: unknown field; did you mean nodes?"),
        ("command: [a]\nzzz: 2\n", "job.yaml:2: zzz: unknown field; `ergon schema` has all of them"),
        ("command: [a]\nnodes: 0\n", "job.yaml:2: nodes: a job has from 1 to 100000 nodes, not 0"),
        ("command: [a]\n\nmemory: 4G\n", "job.yaml:3: memory: '4G' is not a size; write a number and a unit"),
        ("command: [a]\nmemory: 4\n", "job.yaml:2: memory: write 4 as text with a unit, such as 4GiB"),
        ("command: [a]\ntime_limit: 90\n", "job.yaml:2: time_limit: write 90 as text with a unit, such as 2h"),
        ("command: [a]\ntime_limit: 2h\ntime_limit_s: 1\n", "give `time_limit` or `time_limit_s`, not both"),
        ("nodes: 2\n", "job.yaml:1: give exactly one of `command` and `recipe`"),
        ("command: a b\n", "job.yaml:1: command: Input should be a valid list"),
        ("recipe: {name: x, optoins: {}}\n", "job.yaml:1: recipe.optoins: unknown field; did you mean options?"),
        ("jobs: []\n", "job.yaml:1: jobs: List should have at least 1 item"),
        (
            "jobs:\n- command: [a]\n- command: [b]\n  priorty: 1\n",
            "job.yaml:4: jobs.1.priorty: unknown field; did you mean",
        ),
        ("jobs: [{command: [a]}]\nname: x\n", "job.yaml:2: name: unknown field"),
        ("name: x\nname: y\n", "job.yaml:2: name: given twice"),
        ("env: {A: 1, A: 2}\n", "job.yaml:1: env.A: given twice"),
        ("", "job.yaml: holds no job"),
        ("- a\n", "job.yaml: holds no mapping at the top"),
        ("a: 1\n---\nb: 2\n", "job.yaml:2: not YAML: "),
        ("name: [x\n", "job.yaml:2: not YAML: "),
        ('name: "\x01"\n', "job.yaml: not YAML: "),
        (b"name: \xff\n", "job.yaml:1: not text in UTF-8"),
        ("name: !!python/name:os.system x\n", "job.yaml:1: the tag "),
        ("? [a]\n: b\n", "job.yaml:1: a key must be a plain word"),
        ("<<: 5\n", "job.yaml:1: `<<` takes a mapping"),
        (BOMB, "job.yaml:1: more than 1000000 values once aliases are written out"),
        ("a: &a [*a]\n", "job.yaml:1: nested more than 50 deep: an alias inside of what it names"),
        ("[" * 100_000, "job.yaml:1: nested more than 50 deep"),
        ("\n".join(" " * depth + "a:" for depth in range(2_000)), "job.yaml:51: nested more than 50 deep"),
        ("#" * (MAX_FILE_BYTES + 1), "job.yaml: longer than 10 MiB; split it"),
    ],
    ids=range(29),
)
def test_what_yaml_cannot_mean(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert refused(tmp_path, text)[0].startswith(message) or message in refused(tmp_path, text)[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('command = ["a"]\nnodess = 2\n', "job.toml: nodess: unknown field; did you mean nodes?"),
        ("name = \n", "job.toml: not TOML: "),
        ("a = " + "[" * 100_000, "job.toml: nested more than 50 deep"),
        ("", "job.toml: give exactly one of"),
    ],
)
def test_what_toml_cannot_mean(tmp_path: Path, text: str, message: str) -> None:
    assert refused(tmp_path, text, "job.toml")[0].startswith(message)


def test_several_faults_are_told_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = "jobs:\n" + "".join(f"- command: [a]\n  nodes: {-number}\n" for number in range(15))
    first, more = refused(tmp_path, text)
    assert first.startswith("job.yaml:3: jobs.0.nodes: ")
    assert [line.split(": ")[1] for line in more[:-1]] == [f"jobs.{index}.nodes" for index in range(1, 10)]
    assert more[-1] == "... and 5 more"


def test_files_that_are_not_there_or_named_otherwise(tmp_path: Path) -> None:
    with pytest.raises(JobFileError, match=r"none.yaml: cannot be read: No such file"):
        read_jobs(tmp_path / "none.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(JobFileError, match="cannot be read: Is a directory"):
        read_jobs(tmp_path / "folder.yaml")
    assert "the name of a job file ends in .yaml, .yml, .json or .toml" in refused(tmp_path, "a", "job.txt")[0]


@given(text=st.text(max_size=200) | st.text(alphabet="[]{}&*a:-,<>!'\"#|\n ", max_size=200))
def test_any_text_is_a_job_or_one_clear_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.getbasetemp()
    for name in ("any.yaml", "any.toml"):
        try:
            assert read(folder, text.encode("utf-8", "surrogatepass"), name)
        except JobFileError as error:
            message = str(error)
        else:
            continue
        assert message.startswith(f"{folder}/{name}:")


def test_the_schema_in_the_documentation_is_the_one_of_the_code() -> None:
    assert json.loads(SCHEMA.read_text()) == schema(), "renew it: ergon schema > docs/job.schema.json"
