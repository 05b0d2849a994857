"""GPUs that are well, and one of each kind that is not."""

from collections.abc import Iterator

from tests.rules.promtool import Fires, Labels, Samples, Scenario, constant, counter, labels

LAST = 80
GAUGES = {"GpuXid": "DCGM_EXP_XID_ERRORS_COUNT", "GpuRowRemapFailure": "DCGM_FI_DEV_ROW_REMAP_FAILURE"}
COUNTERS = {
    "GpuMemoryErrors": ("DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS", "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL"),
    "GpuThrottled": ("DCGM_FI_DEV_THERMAL_VIOLATION", "DCGM_FI_DEV_POWER_VIOLATION"),
}


def scenarios() -> Iterator[Scenario]:
    yield _gpus()
    yield _no_exporter()


def _gpu(number: int) -> Labels:
    return labels(gpu=str(number), instance="n1")


def _gpus() -> Scenario:
    """GPU 0 is well, 1 and 2 are not, each by one of the metrics; of memory, 1 has less left than 0."""
    series: dict[tuple[str, Labels], Samples] = {}
    alerts = {}
    for alert, metric in GAUGES.items():
        series |= {(metric, _gpu(0)): constant(0, LAST), (metric, _gpu(1)): constant(1, LAST)}
        alerts[alert] = Fires(frozenset({_gpu(1)}), frozenset({_gpu(0)}))
    for alert, (first, second) in COUNTERS.items():
        for number, metric in ((1, first), (2, second)):
            # What has happened before, and does not go on, is no news.
            series |= {(metric, _gpu(0)): constant(7, LAST), (metric, _gpu(number)): counter(0.5, LAST)}
        alerts[alert] = Fires(frozenset({_gpu(1), _gpu(2)}), frozenset({_gpu(0)}))
    for number, used in ((0, 93.0), (1, 97.0)):
        series["DCGM_FI_DEV_FB_USED", _gpu(number)] = constant(used, LAST)
        series["DCGM_FI_DEV_FB_FREE", _gpu(number)] = constant(100 - used, LAST)
    alerts["GpuMemoryFull"] = Fires(frozenset({_gpu(1)}), frozenset({_gpu(0)}))
    alerts["GpuExporterAbsent"] = Fires(frozenset(), frozenset({()}))
    return Scenario("gpus", LAST, series, alerts=alerts)


def _no_exporter() -> Scenario:
    alerts = {"GpuExporterAbsent": Fires(frozenset({()}), frozenset())}
    return Scenario("no exporter of GPUs", LAST, {("up", labels(job="dcgm")): constant(0, LAST)}, alerts=alerts)
