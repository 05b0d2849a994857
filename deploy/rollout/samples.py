"""What the samples of counters say that PromQL does not: exact increases, and how much traffic comes in bursts."""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from deploy.prometheus import Scraped
from monitoring import drift
from monitoring.drift import Array

RARE, FEW_IN_A_BIN, FEWEST_WINDOWS = 0.02, 30, 4
"""What a dispersion is estimated from: bins with as large a share, counts in the mean bin of a window, and windows."""


def increase(series: Scraped, since: float) -> int:
    """What a counter grew by after its last sample up to `since`, exactly; all of it where it was born later.

    A value below the one before is a restart from 0.
    """
    before = series.times <= since
    start = series.values[before][-1] if before.any() else 0.0
    values = series.values[~before]
    grown = np.diff(values, prepend=start)
    return round(float(np.where(grown < 0, values, grown).sum()))


def after(series: Scraped, since: float) -> tuple[Array, Array]:
    """Times and values of the samples later than `since`."""
    later = series.times > since
    return series.times[later], series.values[later]


def dispersion(scrapes: npt.ArrayLike) -> float:
    """How much more than chance counts [scrapes, bins] differ from one time to the next; 1 where they are too few.

    Rare bins count with the next rarest, as they have too few to show bursts; scrapes are taken together for the same
    reason, until the mean bin has FEW_IN_A_BIN.
    """
    scrapes = np.asarray(scrapes, dtype=np.float64)
    totals = scrapes.sum(axis=0)
    order = np.argsort(totals)
    rare = int((totals < RARE * totals.sum()).sum())
    bins = np.column_stack((scrapes[:, order[: rare + 1]].sum(axis=1), scrapes[:, order[rare + 1 :]]))
    windows = min(len(bins), int(bins.sum()) // (FEW_IN_A_BIN * bins.shape[1]))
    if windows < FEWEST_WINDOWS or bins.shape[1] < 2:
        return 1.0
    return float(drift.dispersion([part.sum(axis=0) for part in np.array_split(bins, windows)]))


def bursts(series: Iterable[Scraped], bin_label: str, since: float, *, cumulated: bool = False) -> float:
    """Dispersion of what was counted from scrape to scrape, the mean of the nodes. A histogram's bins are cumulated."""
    nodes: dict[str, dict[str, Array]] = defaultdict(dict)
    for one in series:
        nodes[one.labels.get("instance", "")][one.labels[bin_label]] = after(one, since)[1]
    found = []
    for bins in nodes.values():
        scrapes = min(map(len, bins.values()))
        labels = sorted(bins, key=float) if cumulated else sorted(bins)
        counts = np.array([bins[label][len(bins[label]) - scrapes :] for label in labels])
        grown = np.diff(np.diff(counts, axis=0, prepend=0.0) if cumulated else counts, axis=1).T
        # After a restart they shrink, which says nothing.
        found.append(dispersion(grown[(grown >= 0).all(axis=1)]))
    return float(np.mean(found)) if found else 1.0
