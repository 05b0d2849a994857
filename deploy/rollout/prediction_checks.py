"""Whether the candidate says what the champion says, and to the same inputs: what is asked here mostly holds."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from deploy.rollout import statistics
from deploy.rollout.evidence import Version
from deploy.rollout.look import Look, answer, percent
from deploy.rollout.record import Check, CheckState
from deploy.traffic import Counts
from monitoring import drift, names
from monitoring.drift import Array, wilson_interval
from monitoring.profile import MISSING
from monitoring.words import is_ordered, what_moved

INPUTS, PREDICTIONS = ("number", "category"), ("output", "prediction")
Edge = tuple[float, ...]


def prediction_checks(look: Look) -> Iterator[Check]:
    yield predictions(look)
    yield agreement(look)
    yield input_drift(look)


def predictions(look: Look) -> Check:
    """Whether the candidate predicts something else than the champion from the same traffic."""
    limits, then = look.policy.predictions, look.policy.on_prediction_change
    theirs = {(one.feature, one.kind): one for one in look.evidence.champion.features if one.kind in PREDICTIONS}
    ours = {(one.feature, one.kind): one for one in look.evidence.candidate.features if one.kind in PREDICTIONS}

    def check(state: CheckState, words: str, numbers: dict[str, float] | None = None) -> Check:
        return Check(
            name="predictions", state=state, then=then, words=words, numbers=numbers or {}, queries=_queries(look)
        )

    if not theirs and not ours:
        return check("not asked", "neither version counts what it predicts")
    if not theirs or not ours:
        silent = "champion" if ours else "candidate"
        return check("no data", f"the {silent} has counted no predictions: it has no profile, or had no rows yet")
    changes = [
        change
        for key in sorted(theirs.keys() & ours.keys())
        if (change := _change(look, ours[key], theirs[key])) is not None
    ]
    if not changes:
        return check("no data", "nothing that both versions predict can be compared: their bins are different")
    rows = min(min(one.rows, one.champion_rows) for one in changes)
    worst = max(changes, key=lambda one: (one.failed, one.size / one.allowed))
    numbers = {f"{one.feature} {one.measure}": one.size for one in changes} | {"rows": rows, "needed": limits.rows}
    if worst.failed:
        return check("failed", f"the predictions changed: {worst.words}", numbers)
    if rows < limits.rows:
        return check("undecided", f"{rows:.0f} rows of one version; from {limits.rows} on they are compared", numbers)
    return check("passed", f"the predictions are the champion's: at most, {worst.words}", numbers)


class _Change(NamedTuple):
    feature: str
    measure: str
    size: float
    allowed: float
    failed: bool
    rows: float
    champion_rows: float
    words: str


def _change(look: Look, ours: Counts, theirs: Counts) -> _Change | None:
    """How far one prediction moved; None where nothing says how the bins of the two lie to each other."""
    our_edges, their_edges = _edges(look.evidence.candidate, ours), _edges(look.evidence.champion, theirs)
    if not is_ordered(ours.feature, ours.kind) or (our_edges is not None and our_edges == their_edges):
        return _of_same_bins(look, ours, theirs, our_edges)
    if our_edges is None or their_edges is None:
        return None
    return _of_other_bins(look, ours, theirs, (our_edges, their_edges))


def _edges(version: Version, counts: Counts) -> Edge | None:
    """Of the version's archive, if that is what the nodes run: bins are one more than edges, and `missing`."""
    edges = version.edges.get((counts.feature, counts.kind))
    return edges if edges is not None and len(edges) == len(counts.labels) - 2 else None


def _of_same_bins(look: Look, ours: Counts, theirs: Counts, edges: Edge | None) -> _Change:
    """Two-sample chi-square and PSI, both with the rows that are left after correction for bursts."""
    limits = look.policy.predictions
    labels = sorted({*ours.labels, *theirs.labels}, key=lambda label: (label == MISSING, label))
    bursts = max(ours.dispersion, theirs.dispersion)
    live, reference = _by_label(ours, labels), _by_label(theirs, labels)
    found = drift.compare(live, reference / bursts, bursts)
    enough = min(live.sum(), reference.sum()) / bursts >= limits.rows
    failed = enough and bool(drift.drifted(found, min_effect=limits.effect, min_z=look.policy.z, min_rows=limits.rows))
    size = float(np.nan_to_num(found.psi_excess))
    ordered = is_ordered(ours.feature, ours.kind)
    moved = what_moved(tuple(labels), reference, live, ordered=ordered, edges=edges)
    words = (
        f"{ours.feature}: {moved}; PSI beyond chance {size:.3f}, {limits.effect:g} is allowed "
        f"(z {float(np.nan_to_num(found.z)):.1f}, {look.policy.z:g})"
    )
    return _Change(
        ours.feature, "psi_excess", size, limits.effect, failed, float(live.sum()), float(reference.sum()), words
    )


def _of_other_bins(look: Look, ours: Counts, theirs: Counts, edges: tuple[Edge, Edge]) -> _Change:
    """Bounds of how many rows lie on the other side of a value, where each version has edges of its own.

    Fewer of the candidate's rows are above a higher edge than above the champion's, were they distributed alike: what
    is above in spite of that has moved. Likewise below.
    """
    limits = look.policy.predictions
    bursts = max(ours.dispersion, theirs.dispersion)
    rows, champion_rows = float(ours.live.sum()), float(theirs.live.sum())
    bad, champion_bad = _beyond(ours, theirs, edges) / bursts
    found = statistics.compared(
        bad, rows / bursts, champion_bad, champion_rows / bursts,
        margin=limits.share, z=look.policy.z, confidence_z=look.policy.confidence_z,
    )  # fmt: skip
    size = float(np.nan_to_num(found.difference).max(initial=0.0))
    words = f"{size:.1%} of the rows of {ours.feature} moved across a value; {limits.share:.0%} are allowed"
    enough = min(rows, champion_rows) / bursts >= limits.rows
    return _Change(
        ours.feature, "share moved", size, limits.share, enough and bool(found.failed.any()), rows, champion_rows, words
    )


def _beyond(ours: Counts, theirs: Counts, edges: tuple[Edge, Edge]) -> Array:
    """Rows of both beyond each edge of the champion's, [2, comparisons]: above it, and then below it.

    A missing value is above all.
    """
    our_edges, their_edges = (np.array(one, dtype=np.float64) for one in edges)
    # [edges]; bin i ends at edge i.
    (ours_below, ours_above), (theirs_below, theirs_above) = (
        (np.cumsum(one.live[-1])[:-2], statistics.above(one.live[-1])[:-1]) for one in (ours, theirs)
    )
    higher = np.searchsorted(our_edges, their_edges, side="left")
    lower = np.searchsorted(our_edges, their_edges, side="right") - 1
    up, down = higher < len(our_edges), lower >= 0
    return np.stack([
        np.concatenate((ours_above[higher[up]], ours_below[lower[down]])),
        np.concatenate((theirs_above[up], theirs_below[down])),
    ])  # fmt: skip


def agreement(look: Look) -> Check:
    """Of mirrored rows, with the version that answered the user."""
    limits, candidate = look.policy.agreement, look.evidence.candidate
    rows = candidate.agreed + candidate.disagreed
    found: CheckState = "not asked"
    words = "no request was mirrored to the candidate"
    if rows or look.policy.steps[look.step].mirror:
        _, most = wilson_interval(candidate.agreed, rows, look.policy.z)
        enough = rows >= limits.rows
        found = answer(failed=enough and bool(most < limits.share), passed=enough)
        words = (
            f"the candidate agreed on {candidate.agreed} of {rows} mirrored rows{percent(candidate.agreed, rows)}; "
            f"{limits.share:.0%} is wanted, judged from {limits.rows} rows on"
        )
    return Check(
        name="agreement", state=found, then=look.policy.on_disagreement, words=words,
        numbers={"agreed": candidate.agreed, "rows": rows, "wanted": limits.share},
        queries=look.queries(names.SHADOW_ROWS),
    )  # fmt: skip


def input_drift(look: Look) -> Check:
    """The candidate's inputs against its own profile: champion and candidate see the same, so this condemns neither.

    Not the recorded alerts: the shortest looks back ten minutes, which many a canary does not last; and those of the
    champion would hold the very version that was trained anew because of them.
    """
    inputs = [one for one in look.evidence.candidate.features if one.kind in INPUTS and one.reference.sum() > 0]
    if look.policy.on_input_drift == "nothing" or not inputs:
        words = "the candidate has no profile of its inputs" if not inputs else "the endpoint's policy asks for nothing"
        return Check(name="input drift", state="not asked", then="hold", words=words)
    allowed, rows = look.policy.input_drift_effect, look.policy.predictions.rows
    found = [(one, drift.compare(one.live[-1], one.reference, one.dispersion)) for one in inputs]
    effects = {one.feature: float(np.nan_to_num(compared.psi_excess)) for one, compared in found}
    drifted = [
        one.feature
        for one, compared in found
        if drift.drifted(compared, min_effect=allowed, min_z=look.policy.z, min_rows=rows)
    ]
    farthest = max(effects, key=lambda name: effects[name])
    words = (
        f"inputs are not what the candidate was trained on: {', '.join(drifted)}; the evidence is of other traffic"
        if drifted
        else "inputs are what the candidate was trained on"
    )
    words += f" (PSI beyond chance at most {effects[farthest]:.3f}, of {farthest}; {allowed:g} is allowed)"
    return Check(
        name="input drift", state=answer(failed=bool(drifted), passed=True), then="hold", words=words,
        numbers=effects, queries=_queries(look),
    )  # fmt: skip


def _by_label(counts: Counts, labels: list[str]) -> Array:
    rows = dict(zip(counts.labels, counts.live[-1].tolist(), strict=True))
    return np.array([rows.get(label, 0.0) for label in labels])


def _queries(look: Look) -> dict[str, str]:
    return {name: query for name, query in look.evidence.queries.items() if "features" in name}
