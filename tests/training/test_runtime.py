"""`ergon.runtime`: every line it writes is one the service reads, and nothing about it can stop a training run."""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ergon import runtime
from protocol.progress import ProgressLine

COUNTS = ("step", "total_steps", "epoch", "total_epochs")
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)


def script(lines: str, *, progress: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """A training script in a process of its own, so that "once" and signals mean what they do in real life."""
    environment = {"PATH": os.environ["PATH"]} | ({"ERGON_PROGRESS": str(progress)} if progress else {})
    return subprocess.run(
        [sys.executable, "-P", "-c", "import os, resource, signal\nfrom ergon import runtime\n" + lines],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@given(
    counts=st.dictionaries(st.sampled_from(COUNTS), st.integers(0, 2**62)),
    metrics=st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), st.floats(), max_size=100
    ),
)
def test_every_line_is_one_the_service_reads_with_what_was_reported(
    counts: dict[str, int], metrics: dict[str, float]
) -> None:
    metrics = {name: value for name, value in metrics.items() if name not in COUNTS}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder, "progress")
        patch.setenv("ERGON_PROGRESS", str(path))
        runtime.report(**counts, **metrics)
        runtime.report(step=1)
        first, second, rest = path.read_bytes().split(b"\n")

    line = ProgressLine.model_validate_json(first)
    assert {name: getattr(line, name) for name in COUNTS} == {name: counts.get(name) for name in COUNTS}
    assert line.metrics == {name: value for name, value in metrics.items() if math.isfinite(value)}
    assert ProgressLine.model_validate_json(second) == ProgressLine(step=1)
    assert rest == b""


def test_numbers_of_numpy_and_torch_are_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERGON_PROGRESS", str(tmp_path / "progress"))
    loss = torch.tensor(0.5, requires_grad=True)
    runtime.report(step=numpy.int64(3), epoch=torch.tensor(2), loss=loss, accuracy=numpy.float32(0.25))
    line = ProgressLine.model_validate_json((tmp_path / "progress").read_bytes())
    assert line == ProgressLine(step=3, epoch=2, metrics={"loss": 0.5, "accuracy": 0.25})


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"step": -1}, "step=-1"),
        ({"epoch": 1.5}, "epoch=1.5"),
        ({"total_steps": "9"}, "total_steps='9'"),
        ({"loss": "low"}, "loss='low'"),
        ({"loss": [0.1, 0.2]}, "loss="),
        ({"loss": 10**400}, "loss="),
        ({f"m{number}": 0.0 for number in range(101)}, "101 metrics"),
    ],
)
@pytest.mark.parametrize("inside", [True, False])
def test_what_could_never_be_reported_is_refused_inside_ergon_and_outside(
    arguments: dict[str, object], named: str, inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ERGON_PROGRESS", raising=False)
    if inside:
        monkeypatch.setenv("ERGON_PROGRESS", str(tmp_path / "progress"))
    with pytest.raises(ValueError, match=named):
        runtime.report(**arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "progress").exists()


def test_outside_ergon_nothing_happens() -> None:
    done = script("runtime.report(step=1, loss=0.5)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_metric_that_is_not_finite_is_left_out_with_one_warning(tmp_path: Path) -> None:
    path = tmp_path / "progress"
    done = script("for _ in range(3): runtime.report(step=1, loss=float('nan'), accuracy=0.5)", progress=path)
    assert [json.loads(line)["metrics"] for line in path.read_text().splitlines()] == [{"accuracy": 0.5}] * 3
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert "metric loss is nan" in done.stderr


@pytest.mark.parametrize("path", ["/dev/full", "/nowhere/progress", "/"])
def test_a_file_that_cannot_be_written_costs_one_warning_and_no_training(path: str) -> None:
    done = script("for step in range(3): runtime.report(step=step)\nprint('trained')", progress=Path(path))
    assert (done.returncode, done.stdout) == (0, "trained\n")
    assert (done.stderr.count("\n"), path in done.stderr) == (1, True)


def test_a_full_disk_under_stderr_too_does_not_stop_training() -> None:
    done = script(
        "os.dup2(os.open('/dev/full', os.O_WRONLY), 2)\nruntime.report(step=1)\nprint('trained')",
        progress=Path("/dev/full"),
    )
    assert (done.returncode, done.stdout) == (0, "trained\n")


def test_a_line_cut_short_by_a_full_disk_never_runs_into_the_next(tmp_path: Path) -> None:
    path = tmp_path / "progress"
    done = script(
        "runtime.report(step=1)\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "full = os.path.getsize(os.environ['ERGON_PROGRESS']) + 5\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (full, hard))\n"
        "runtime.report(step=2)\n"
        "runtime.report(step=3)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))\n"
        "runtime.report(step=4)\n"
        "runtime.report(step=5)\n",
        progress=path,
    )
    lines = path.read_text().splitlines()
    whole = [json.loads(line)["step"] for line in (lines[0], *lines[2:])]
    assert (whole, lines[1]) == ([1, 4, 5], '{"ste')
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)


def test_lines_of_several_processes_never_mix(tmp_path: Path) -> None:
    path = tmp_path / "progress"
    done = script(
        "children = []\n"
        "for child in range(4):\n"
        "    children.append(os.fork())\n"
        "    if not children[-1]:\n"
        "        for step in range(200): runtime.report(step=step, **{f'metric{n}': child for n in range(90)})\n"
        "        os._exit(0)\n"
        "for child in children: assert os.waitpid(child, 0)[1] == 0\n",
        progress=path,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted((line["metrics"]["metric0"], line["step"]) for line in lines) == [
        (child, step) for child in range(4) for step in range(200)
    ]


def test_sigterm_ends_a_script_that_never_asked_to_be_told() -> None:
    done = script("os.kill(os.getpid(), signal.SIGTERM)\nprint('still here')")
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "")


def test_sigterm_is_told_to_a_script_that_watches_for_it() -> None:
    done = script(
        "runtime.watch_for_stop()\n"
        "print(runtime.stop_requested())\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "print(runtime.stop_requested())\n"
    )
    assert (done.returncode, done.stdout) == (0, "False\nTrue\n")


def test_importing_it_needs_the_standard_library_only() -> None:
    done = script("import sys\nprint(sorted(sys.modules.keys() & {'torch', 'numpy', 'httpx', 'pydantic', 'protocol'}))")
    assert (done.returncode, done.stdout) == (0, "[]\n")
