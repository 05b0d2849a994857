"""The gate: one step's evidence to a verdict. Pure; every number of it is in the verdict's checks."""

from deploy.rollout.evidence import Evidence
from deploy.rollout.look import Look
from deploy.rollout.policy import Policy
from deploy.rollout.prediction_checks import prediction_checks
from deploy.rollout.record import Check, Outcome, Step, Verdict
from deploy.rollout.service_checks import ERRORS, SLOW, service_checks
from monitoring import names

EVERY_STEP = (ERRORS, SLOW)
"""Must have passed before any next step; the rest, as far as it is asked, before the promotion."""
STALE_SECONDS = 60
"""Without a scrape of the candidate for as long, nothing is known of now."""


def judge(
    policy: Policy, step: int, evidence: Evidence | str, *, step_since: float, at: float, lost_readiness: str
) -> Verdict:
    """What follows for a rollout in its step `step` (from 0), which began at `step_since`; times are Unix times.

    Words in place of evidence say why there is none. `lost_readiness` says why the candidate is not ready now, and is
    empty if it is. What has failed decides at once; otherwise the step goes on until it has lasted long enough, has
    seen enough requests and nothing that is wanted is open any more, or until it gives up and holds.
    """
    checks = [readiness(lost_readiness), *_of_evidence(policy, step, evidence, at)]
    outcome, words = _decide(policy, step, checks, at - step_since)
    since = step_since if isinstance(evidence, str) else evidence.canary_since
    return Verdict(outcome=outcome, words=words, checks=tuple(checks), step=step, since=since, at=at)


def readiness(lost: str) -> Check:
    words = f"the candidate is not ready: {lost}" if lost else "the candidate is ready"
    return Check(name="readiness", state="failed" if lost else "passed", then="roll back", words=words)


def _of_evidence(policy: Policy, step: int, evidence: Evidence | str, at: float) -> list[Check]:
    if isinstance(evidence, str):
        words = f"nothing is known of the candidate: {evidence}"
        return [Check(name="requests", state="no data", then="hold", words=words)]
    look = Look(policy, step, evidence)
    return [requests(look, at), *service_checks(look), *prediction_checks(look)]


def requests(look: Look, at: float) -> Check:
    """Whether there is enough, and fresh enough, to judge by."""
    found, wanted, age = look.in_step.requests, look.policy.steps[look.step].requests, at - look.evidence.candidate.seen
    what = "copies" if look.mirrors else "requests"
    if age > STALE_SECONDS:
        when = f"for {age:.0f} s" if age < float("inf") else "at all"
        words = f"no node with the candidate was scraped {when}: see that Prometheus scrapes it (shipway status)"
        return Check(name="requests", state="no data", then="hold", words=words)
    return Check(
        name="requests",
        state="passed" if found >= wanted else "undecided",
        then="hold",
        words=f"the candidate had {found} {what} in this step; {wanted} are wanted",
        numbers={"requests": found, "wanted": wanted},
        queries=look.queries(names.SHADOW_REQUESTS if look.mirrors else names.EDGE_REQUESTS, names.EDGE_LOST),
    )


def _decide(policy: Policy, step: int, checks: list[Check], seconds: float) -> tuple[Outcome, str]:
    for outcome in ("roll back", "hold"):
        if failed := [check for check in checks if check.state == "failed" and check.then == outcome]:
            return outcome, "; ".join(check.words for check in failed)
    steps, this, last = len(policy.steps), policy.steps[step], step == len(policy.steps) - 1
    still = _open(this, checks, seconds, last=last)
    if not still:
        reached = f"{steps} of {steps} steps" if last else f"step {step + 1} of {steps}"
        return "promote", f"{reached} passed: nothing speaks against the candidate"
    if seconds >= this.give_up_seconds:
        given = f"undecided after {seconds:.0f} s, and {this.give_up_seconds:g} s are allowed"
        return "hold", f"{given}: {'; '.join(still)}"
    return "wait", "; ".join(still)


def _open(step: Step, checks: list[Check], seconds: float, *, last: bool) -> list[str]:
    """What is still missing for the next step."""
    short = [f"the step lasts {step.seconds - seconds:.0f} s more"] if seconds < step.seconds else []
    wanted = [check for check in checks if last or check.name in ("requests", *EVERY_STEP)]
    return short + [f"{check.name}: {check.words}" for check in wanted if check.state in ("undecided", "no data")]
