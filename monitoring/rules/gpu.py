"""GPUs, by NVIDIA's dcgm-exporter; without it these alerts are silent. The names are the exporter's.

What a busy GPU shows (engine, tensor cores, memory traffic) is for a dashboard, not for an alert.
"""

from monitoring.config import Config, Duration
from monitoring.rules.rule import Alert, Group

ITS_GPU = "GPU {{ $labels.gpu }} of {{ $labels.instance }}"
ROUNDED = '{{ printf "%.0f" $value }}'


def gpu(config: Config) -> Group:
    used = "DCGM_FI_DEV_FB_USED"
    limit = config.health.gpu_memory
    return Group(
        "shipway-gpu",
        (
            # DCGM_FI_DEV_XID_ERRORS holds the last code for ever; this one counts within the exporter's window.
            _page(
                "GpuXid",
                "DCGM_EXP_XID_ERRORS_COUNT > 0",
                None,
                "reports faults",
                f"{ROUNDED} of XID {{{{ $labels.xid }}}}.",
            ),
            _page(
                "GpuRowRemapFailure",
                "DCGM_FI_DEV_ROW_REMAP_FAILURE > 0",
                None,
                "cannot replace a broken row of its memory",
                f"The exporter reports {ROUNDED}; 0 is healthy.",
            ),
            _page(
                "GpuMemoryErrors",
                "increase(DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS[1h]) > 0\n"
                "or increase(DCGM_FI_DEV_ECC_DBE_VOL_TOTAL[1h]) > 0",
                None,
                "has memory errors that cannot be corrected",
                f"{ROUNDED} within one hour.",
            ),
            _ticket(
                "GpuThrottled",
                "increase(DCGM_FI_DEV_THERMAL_VIOLATION[5m]) > 0\nor increase(DCGM_FI_DEV_POWER_VIOLATION[5m]) > 0",
                "10m",
                "is slowed down by heat or by its power limit",
                "It was held back for {{ $value }} of the exporter's units of time within 5 minutes.",
            ),
            _ticket(
                "GpuMemoryFull",
                f"{used} / ({used} + DCGM_FI_DEV_FB_FREE) > {limit:g}",
                "15m",
                "is almost out of memory",
                f"{{{{ humanizePercentage $value }}}} of its memory is used; {limit:.0%} is allowed.",
            ),
            *([_absent(used)] if config.health.gpus else []),
        ),
    )


def _page(name: str, expr: str, hold: Duration | None, what: str, description: str) -> Alert:
    return Alert(name, expr, hold, "page", f"{ITS_GPU} {what}", description)


def _ticket(name: str, expr: str, hold: Duration, what: str, description: str) -> Alert:
    return Alert(name, expr, hold, "ticket", f"{ITS_GPU} {what}", description)


def _absent(metric: str) -> Alert:
    return Alert(
        "GpuExporterAbsent",
        f"absent({metric})",
        "10m",
        "ticket",
        "No GPU is watched",
        "GPUs are expected, but no metric of theirs has come for 10 minutes (absent is {{ $value }}).",
    )
