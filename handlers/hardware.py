"""What a worker runs on: how many processors it may use, and which instructions they have."""

import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
_V2 = ("cpu.max",)
_V1 = ("cpu.cfs_quota_us", "cpu.cfs_period_us")

# Each level has the instructions of those before it, and is the `-march` that a program is compiled with. So compiled
# code needs what its archive says, and nothing that the packaging machine happens to have beside it.
X86_LEVELS: Mapping[str, tuple[str, frozenset[str]]] = {
    "avx2": ("x86-64-v3", frozenset({"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe"})),
    "avx512": ("x86-64-v4", frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"})),
    "avx512_vnni": ("cascadelake", frozenset({"avx512_vnni"})),
    "avx512_bf16": ("cooperlake", frozenset({"avx512_bf16"})),
}


def cpu_quota(proc: Path = PROC, cgroups: Path = CGROUPS) -> float:
    """Processors that this process may use: by its cgroups' quota, where there is one, and by its affinity."""
    allowed = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    return min([allowed, *_quotas(proc / "self" / "cgroup", cgroups)])


def worker_threads(workers: int, quota: float | None = None) -> int:
    """Threads of one of `workers` that share the quota: rounded down, because a quota that is overdrawn throttles."""
    return max(1, int((cpu_quota() if quota is None else quota) // max(1, workers)))


def cpu_target(proc: Path = PROC) -> dict[str, str]:
    """What code compiled for this CPU needs: `device`, `machine` and `isa`."""
    machine = platform.machine()
    flags = _cpu_flags(proc)
    if machine != "x86_64":
        return {"device": "cpu", "machine": machine, "isa": " ".join(sorted(flags))}
    isa = "x86-64"
    for level, (_, needed) in X86_LEVELS.items():
        if not needed <= flags:
            break
        isa = level
    return {"device": "cpu", "machine": machine, "isa": isa}


def cpu_model(proc: Path = PROC) -> str:
    """The CPU by its name, as far as the system tells."""
    return _cpu_field(proc, "model name") or platform.processor() or platform.machine()


def fits(target: Mapping[str, str], found: Mapping[str, str]) -> bool:
    """Whether code compiled for `target` runs on the hardware `found`, which has at least its instructions."""
    levels = ["x86-64", *X86_LEVELS]
    wanted, has = target.get("isa"), found.get("isa")
    if wanted in levels and has in levels:
        wanted, has = "", "" if levels.index(has) >= levels.index(wanted) else "less"
    return (wanted, {**target, "isa": ""}) == (has, {**found, "isa": ""})


def described(target: Mapping[str, str]) -> str:
    """A target for a message, such as `cpu x86_64 avx512_bf16`."""
    return " ".join(filter(None, map(target.get, ("device", "machine", "isa", "arch"))))


def march(target: Mapping[str, str]) -> str | None:
    """The compiler's `-march` for a target, None for whatever this machine has."""
    level = X86_LEVELS.get(target.get("isa", ""))
    return level[0] if level else "x86-64" if target.get("machine") == "x86_64" else None


def _quotas(own: Path, cgroups: Path) -> Iterator[float]:
    """Quotas in processors of this process's cgroup and all above it: the smallest of them holds."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", maxsplit=2)
        # In a container of its own namespace the path may lead out of what is mounted: then the mount's root counts.
        if not controllers:
            yield from _walk(cgroups, path, _V2)
        elif "cpu" in controllers.split(","):
            for mounted in {cgroups / controllers, cgroups / "cpu"}:
                yield from _walk(mounted, path, _V1)


def _walk(root: Path, path: str, files: tuple[str, ...]) -> Iterator[float]:
    relative = Path(path.lstrip("/"))
    for directory in (relative, *relative.parents):
        if ".." not in directory.parts and (quota := _quota(root / directory, files)):
            yield quota


def _quota(directory: Path, files: tuple[str, ...]) -> float | None:
    """Of one directory of cgroups, from its quota and its period in µs; None where it sets none."""
    try:
        quota, period = " ".join((directory / name).read_text() for name in files).split()
    except (OSError, ValueError):
        return None
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _cpu_flags(proc: Path) -> frozenset[str]:
    return frozenset((_cpu_field(proc, "flags") or _cpu_field(proc, "Features")).split())


def _cpu_field(proc: Path, name: str) -> str:
    try:
        lines = (proc / "cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name), "")
