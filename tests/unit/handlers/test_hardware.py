"""The CPU quota as the kernel's files say it, and which compiled code runs where."""

import os
from pathlib import Path

import pytest

from handlers.hardware import X86_LEVELS, cpu_quota, cpu_target, fits, march, worker_threads

ALLOWED = float(len(os.sched_getaffinity(0)))


def machine(tmp_path: Path, groups: str, files: dict[str, str]) -> tuple[Path, Path]:
    """A directory like /proc of a process in these cgroups, and one like /sys/fs/cgroup with these files."""
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(groups)
    for name, content in files.items():
        (cgroups / name).parent.mkdir(parents=True, exist_ok=True)
        (cgroups / name).write_text(content)
    return proc, cgroups


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 0.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, ALLOWED),
        ("0::/a/b\n", {"a/cpu.max": "20000 100000\n", "a/b/cpu.max": "max 100000\n"}, 0.2),
        ("0::/a/b\n", {"a/cpu.max": "90000 100000\n", "a/b/cpu.max": "30000 100000\n"}, 0.3),
        ("0::/../other\n", {"cpu.max": "40000 100000\n"}, 0.4),
        ("1:cpu,cpuacct:/a\n", {"cpu,cpuacct/a/cpu.cfs_quota_us": "60000\n",
                                "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n"}, 0.6),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, ALLOWED),
        ("0::/\n", {"cpu.max": f"{100000 * 4096} 100000\n"}, ALLOWED),
        ("0::/\n", {"cpu.max": "nonsense\n"}, ALLOWED),
        ("", {}, ALLOWED),
    ],
)  # fmt: skip
def test_the_smallest_quota_holds(tmp_path: Path, groups: str, files: dict[str, str], expected: float) -> None:
    assert cpu_quota(*machine(tmp_path, groups, files)) == expected


def test_a_system_without_these_files_has_its_affinity(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "none", tmp_path / "none") == ALLOWED


@pytest.mark.parametrize(
    ("quota", "workers", "threads"), [(8.0, 1, 8), (8.0, 3, 2), (2.5, 1, 2), (0.5, 1, 1), (2.0, 4, 1)]
)
def test_workers_share_the_quota(quota: float, workers: int, threads: int) -> None:
    assert worker_threads(workers, quota) == threads


@pytest.mark.parametrize("level", X86_LEVELS)
def test_the_level_is_the_last_one_that_the_cpu_has_all_of(tmp_path: Path, level: str) -> None:
    names = list(X86_LEVELS)
    has = [flag for name in names[: names.index(level) + 1] for flag in X86_LEVELS[name][1]]
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {' '.join(has)}\n")
    target = cpu_target(tmp_path)
    if target["machine"] == "x86_64":
        assert target["isa"] == level
        assert march(target) == X86_LEVELS[level][0]


@pytest.mark.parametrize(
    ("wanted", "found", "runs"),
    [
        ("avx512", "avx512", True),
        ("avx512", "avx512_bf16", True),
        ("avx512_bf16", "avx512_vnni", False),
        ("avx2", "x86-64", False),
    ],
)
def test_code_runs_where_the_cpu_has_at_least_its_instructions(wanted: str, found: str, *, runs: bool) -> None:
    cpu = {"device": "cpu", "machine": "x86_64"}
    assert fits({**cpu, "isa": wanted}, {**cpu, "isa": found}) is runs


def test_code_of_another_machine_or_device_does_not_run() -> None:
    cpu = {"device": "cpu", "machine": "x86_64", "isa": "avx2"}
    assert not fits(cpu, {**cpu, "machine": "aarch64"})
    assert not fits({"device": "cuda", "arch": "sm_90"}, cpu)
    assert not fits({"device": "cuda", "arch": "sm_90"}, {"device": "cuda", "arch": "sm_80"})
    assert fits({"device": "cuda", "arch": "sm_90"}, {"device": "cuda", "arch": "sm_90"})
