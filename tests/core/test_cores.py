"""Cores: those of the control group, in both versions of its files, and threads of one core once."""

from pathlib import Path

import pytest

from pipeline.core import cores


@pytest.mark.parametrize(
    "files, expected",
    [
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "50000 100000"}, 1.0),
        ({"cpu.max": "max 100000"}, 2**20),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 2**20),
        ({}, 2**20),
    ],
)
def test_available_is_within_the_quota(tmp_path: Path, files: dict[str, str], expected: float) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    assert cores._quota(tmp_path) == expected
    assert 1 <= cores.available(tmp_path) <= expected


def test_available_counts_threads_of_one_core_once(tmp_path: Path) -> None:
    for cpu in range(4):
        (tmp_path / f"cpu{cpu}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}" / "topology" / "thread_siblings_list").write_text(f"{cpu % 2},{cpu % 2 + 2}\n")
    assert cores._physical({0, 1, 2, 3}, tmp_path) == 2
    assert cores._physical({0, 2}, tmp_path) == 1
    assert cores._physical({7, 8}, tmp_path) == 2  # nothing is known of them
