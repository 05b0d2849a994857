"""Whether the candidate serves as well as the champion: what is asked here takes a version back.

Wald's test begins anew with each step; everything else is compared since the canary began. In a step that only mirrors,
the candidate's copies stand for its requests.
"""

from collections.abc import Iterator

import numpy as np

from deploy.rollout import statistics
from deploy.rollout.evidence import Version
from deploy.rollout.look import Bad, Look, answer, as_numbers, percent
from deploy.rollout.policy import Policy, Rate
from deploy.rollout.record import Check
from monitoring import names

ERRORS, SLOW = "errors", "slow answers"
MIB = 2**20


def service_checks(look: Look) -> Iterator[Check]:
    policy, candidate, champion = look.policy, look.candidate, look.champion
    requests = look.queries(names.EDGE_REQUESTS, names.EDGE_LOST, names.REQUESTS, names.SHADOW_REQUESTS)
    seconds = look.queries(names.EDGE_SECONDS, names.SHADOW_SECONDS)
    slow, late = policy.slow, f"took longer than {policy.slow.seconds:g} s"
    lost = f", {look.in_step.lost} of them lost" if look.in_step.lost else ""
    of_errors = Bad(look.in_step.errors, look.in_step.requests, champion.errors, champion.requests)
    of_slow = Bad(look.in_step.slower(slow.seconds), look.in_step.timed, champion.slower(slow.seconds), champion.timed)
    yield _sequential(look, ERRORS, of_errors, policy.errors, f"failed{lost}", requests)
    yield _sequential(look, SLOW, of_slow, slow, late, seconds)
    for name, bad, margin, what, queries in (
        ("errors, compared", Bad(candidate.errors, candidate.requests, champion.errors, champion.requests),
         policy.errors.margin, "failed", requests),
        ("slow answers, compared", Bad(candidate.slower(slow.seconds), candidate.timed,
                                        champion.slower(slow.seconds), champion.timed), slow.margin, late, seconds),
        ("refused inputs", Bad(candidate.refused, candidate.requests, champion.refused, champion.requests),
         policy.refused_margin, "were refused", requests),
    ):  # fmt: skip
        yield _compared(policy, name, bad, margin, what, queries)
    yield latency(look)
    yield restarts(look)
    yield memory(look)
    yield quality(look)


def _sequential(look: Look, name: str, counts: Bad, rate: Rate, what: str, queries: dict[str, str]) -> Check:
    false_alarm = statistics.step_false_alarm(look.policy.false_alarm, look.step)
    test = statistics.sequential(
        *counts, p0=rate.p0, p1=rate.p1, false_alarm=false_alarm, missed=look.policy.missed
    )  # fmt: skip
    p0, p1, ratio = float(test.p0), float(test.p1), float(test.log_ratio)
    raised = "" if p0 == rate.p0 else f" (the champion's own share is {p0:.2%})"
    words = (
        f"{counts.bad} of {counts.of} requests in this step {what}{percent(counts.bad, counts.of)}: the log-likelihood "
        f"ratio of {p1:.2%} to {p0:.2%}{raised} is {ratio:.2f}; from {test.upper:.2f} on it is bad, up to "
        f"{test.lower:.2f} healthy"
    )
    state = answer(failed=bool(test.failed), passed=bool(test.passed))
    numbers = {**counts._asdict(), "p0": p0, "p1": p1, "log_ratio": ratio, "upper": test.upper, "lower": test.lower}
    return Check(
        name=name, state=state if counts.of else "no data", then="roll back", words=words, numbers=numbers,
        queries=queries,
    )  # fmt: skip


def _compared(policy: Policy, name: str, counts: Bad, margin: float, what: str, queries: dict[str, str]) -> Check:
    found = statistics.compared(*counts, margin=margin, z=policy.z, confidence_z=policy.confidence_z)
    words = (
        f"{counts.bad} of the candidate's {counts.of} requests{percent(counts.bad, counts.of)} and "
        f"{counts.reference_bad} of the champion's {counts.reference_of}"
        f"{percent(counts.reference_bad, counts.reference_of)} {what}"
    )
    known = bool(np.isfinite(found.upper))
    if known:
        words += f": {float(found.difference):+.2%}, by chance up to {float(found.upper):+.2%}"
        words += f"; {margin:+.2%} is allowed"
    state = answer(failed=bool(found.failed), passed=bool(found.passed))
    return Check(
        name=name, state=state if known else "no data", then="roll back", words=words,
        numbers={**counts._asdict(), "margin": margin, **as_numbers(found)}, queries=queries,
    )  # fmt: skip


def latency(look: Look) -> Check:
    """The whole distribution: at each bound of the champion's, how many more of the candidate's are beyond it.

    The candidate's bound is the next one of the histogram from factor x bound + slack on, so that nothing is read off
    between bounds. Requests count for fewer where latencies come in bursts.
    """
    limits, champion, candidate = look.policy.latency, look.champion, look.candidate
    bounds = np.array([bound for bound in champion.seconds if np.isfinite(bound)])
    other = np.array([bound for bound in candidate.seconds if np.isfinite(bound)])
    after = np.searchsorted(other, limits.factor * bounds + limits.slack_seconds - 1e-9)
    bounds, after = bounds[after < len(other)], after[after < len(other)]
    queries = look.queries(names.EDGE_SECONDS, names.SHADOW_SECONDS)
    if not (len(bounds) and candidate.timed and champion.timed):
        words = f"{candidate.timed} of the candidate's requests were timed, and {champion.timed} of the champion's"
        return Check(name="latency", state="no data", then="roll back", words=words, queries=queries)
    bursts = look.evidence.latency_dispersion
    found = statistics.compared(
        np.array([candidate.slower(bound) for bound in other[after]]) / bursts, candidate.timed / bursts,
        np.array([champion.slower(bound) for bound in bounds]) / bursts, champion.timed / bursts,
        margin=limits.share, z=look.policy.z, confidence_z=look.policy.confidence_z,
    )  # fmt: skip
    worst = int(np.argmax(np.where(found.failed, 2, 0) + found.difference))
    slower, than = other[after][worst], bounds[worst]
    words = (
        f"{candidate.slower(slower) / candidate.timed:.1%} of the candidate's {candidate.timed} answers took longer "
        f"than {slower:g} s and {champion.slower(than) / champion.timed:.1%} of the champion's {champion.timed} longer "
        f"than {than:g} s; {limits.share:.0%} more are allowed beyond {limits.factor:g} times the champion's latency "
        f"and {limits.slack_seconds:g} s"
    )
    numbers = {
        "candidate_seconds": float(slower), "champion_seconds": float(than), "requests": candidate.timed,
        "champion_requests": champion.timed, "dispersion": bursts, "allowed": limits.share,
        **as_numbers(found, worst),
    }  # fmt: skip
    state = answer(failed=bool(found.failed.any()), passed=bool(found.passed.all()))
    return Check(name="latency", state=state, then="roll back", words=words, numbers=numbers, queries=queries)


def restarts(look: Look) -> Check:
    """Of workers, beyond the champion's: a node that restarts takes both down."""
    candidate, champion = look.evidence.candidate.restarts, look.evidence.champion.restarts
    allowed = champion + look.policy.restarts
    return Check(
        name="restarts", state="failed" if candidate > allowed else "passed", then="roll back",
        words=f"workers of the candidate were restarted {candidate} times, those of the champion {champion} times; "
        f"{allowed} are allowed",
        numbers={"restarts": candidate, "champion": champion, "allowed": allowed},
        queries=look.queries(names.WORKER_RESTARTS),
    )  # fmt: skip


def memory(look: Look) -> Check:
    """Of the node where the candidate's workers grow fastest, after warm-up."""
    limits, evidence = look.policy.memory, look.evidence
    age = evidence.at - evidence.canary_since
    begin = evidence.at - max(limits.seconds, age / 2)
    queries = look.queries(names.WORKER_MEMORY)
    # Scrapes are not at the window's ends.
    if age < 1.5 * limits.seconds or not (grown := _growths(evidence.candidate, begin)):
        words = f"the candidate was watched for {max(age, 0):.0f} s; "
        words += f"from {1.5 * limits.seconds:.0f} s on its memory says something"
        return Check(name="memory", state="undecided", then="roll back", words=words, queries=queries)
    rate, bytes_ = max(grown)
    usual = max([rate for rate, _ in _growths(evidence.champion, begin)], default=0.0)
    allowed = limits.bytes_per_second + max(usual, 0.0)
    words = (
        f"in the last {evidence.at - begin:.0f} s the candidate's workers grew by {bytes_ / MIB:.0f} MiB, in each "
        f"quarter by at least {rate / MIB:.2f} MiB/s, the champion's by {usual / MIB:.2f} MiB/s; "
        f"{allowed / MIB:.2f} MiB/s or {limits.bytes / MIB:.0f} MiB are allowed"
    )
    return Check(
        name="memory", state="failed" if rate > allowed and bytes_ > limits.bytes else "passed", then="roll back",
        words=words, queries=queries,
        numbers={"bytes_per_second": rate, "bytes": bytes_, "champion_bytes_per_second": usual,
                 "allowed_bytes_per_second": allowed, "allowed_bytes": limits.bytes},
    )  # fmt: skip


def _growths(version: Version, begin: float) -> list[tuple[float, float]]:
    parts = ((times[times >= begin], values[times >= begin]) for times, values in version.memory)
    found = [statistics.steady_growth(times, values) for times, values in parts]
    return [one for one in found if np.isfinite(one[0])]


def quality(look: Look) -> Check:
    """Accuracy on the labels that came back, against the champion's."""
    limits, candidate, champion = look.policy.quality, look.evidence.candidate, look.evidence.champion
    counts = Bad(candidate.wrong, candidate.labelled, champion.wrong, champion.labelled)
    if min(counts.of, counts.reference_of) < limits.labels:
        words = f"{counts.of} labels came back for the candidate and {counts.reference_of} for the champion; "
        words += f"fewer than {limits.labels} of either say nothing"
        return Check(
            name="quality", state="not asked", then="roll back", words=words, numbers=counts._asdict(),
            queries=look.queries(names.FEEDBACK),
        )  # fmt: skip
    check = _compared(
        look.policy, "quality", counts, limits.drop, "with a label were wrong", look.queries(names.FEEDBACK)
    )
    # What labels cannot exclude yet is no reason to wait for more: they may come in weeks.
    return check if check.state == "failed" else check.model_copy(update={"state": "passed"})
