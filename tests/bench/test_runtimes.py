"""The benchmark of run times: it reads what Sia published, and refuses what it cannot read."""

from pathlib import Path

import pytest

from bench.runtimes.__main__ import OURS_ALL, OURS_HERE, compare
from bench.runtimes.sia import CLUSTERS, PROGRAMS, DataError, read_groups

HEADER = "placement,local_bsz,step_time,sync_time\n"


def write(data: Path, rows: str) -> None:
    for program in PROGRAMS:
        folder = data / "sia" / "traces" / program
        folder.mkdir(parents=True)
        for cluster in CLUSTERS:
            (folder / f"placements-{cluster}.csv").write_text(HEADER + rows)


def test_digits_are_the_devices_of_each_node_and_a_step_on_n_devices_does_n_times_the_work(tmp_path: Path) -> None:
    write(tmp_path, "1,8,0.5,0.1\n2,8,0.6,0.1\n14,8,0.8,0.1\n41,8,1.0,0.1\n2,16,0.9,0.1\n")
    group = read_groups(tmp_path)[0]
    assert (group.alone.devices, group.alone.run_s) == (1, 0.5)
    assert [(point.devices, point.nodes, point.run_s) for point in group.together] == [
        (2, 1, pytest.approx(0.3)),
        (5, 2, pytest.approx(0.18)),  # the mean of both orders of the nodes
    ]
    assert len(read_groups(tmp_path)) == len(PROGRAMS) * len(CLUSTERS), "a batch that never ran alone is left out"


def test_programs_that_all_behave_alike_are_predicted_well(tmp_path: Path) -> None:
    rows = [(1, 1, "1"), (2, 1, "2"), (4, 1, "4"), (4, 2, "22"), (8, 2, "44"), (12, 3, "444")]
    write(
        tmp_path,
        "".join(
            f"{name},8,{1 + 0.1 * (n > 1 and k == 1) + 0.4 * (k > 1) + 0.03 * max(0, n - 2)},0\n" for n, k, name in rows
        ),
    )
    errors = compare(read_groups(tmp_path), 2, profile=False)
    assert max(errors[OURS_HERE, 1] + errors[OURS_ALL, 1]) < 0.01
    assert max(errors["T_s/N", 1]) > 0.2


@pytest.mark.parametrize(("rows", "said"), [("1,8,fast,0\n", "is not a table"), ("x,8,1,0\n", "is not a table")])
def test_a_file_that_is_no_such_table_is_named(tmp_path: Path, rows: str, said: str) -> None:
    write(tmp_path, rows)
    with pytest.raises(DataError, match=said):
        read_groups(tmp_path)


def test_a_folder_without_the_data_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--data"):
        read_groups(tmp_path)
