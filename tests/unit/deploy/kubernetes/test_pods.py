"""What is wrong with a pod, in one sentence."""

from typing import Any

import pytest

from deploy.kubernetes import pods
from tests.unit.deploy.kubernetes.objects import condition, container, pod, serving, starting

Status = dict[str, Any]
FETCHED = "the registry holds another file under its name: expected sha256:5, found sha256:6"
IMAGE = 'Back-off pulling image "shipway:9": ErrImagePull: shipway:9: not found'
NEVER = 'Container image "shipway:9" is not present with pull policy of Never'
GPU = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: 0/3 nodes are available"
CAUSES: list[tuple[Status, str]] = [
    (
        starting(fetch=container("fetch", waiting={"reason": "ImagePullBackOff", "message": IMAGE})),
        f"fetch waits, ImagePullBackOff: {IMAGE}",
    ),
    (
        starting(fetch=container("fetch", waiting={"reason": "ErrImageNeverPull", "message": NEVER})),
        f"fetch waits, ErrImageNeverPull: {NEVER}",
    ),
    (
        starting(
            fetch=container("fetch", terminated={"exitCode": 1, "reason": "Error", "message": f"asking\n{FETCHED}\n"})
        ),
        f"fetch failed: {FETCHED}",
    ),
    (
        starting(
            fetch=container(
                "fetch",
                restarts=1,
                last={"exitCode": 1, "reason": "Error", "message": FETCHED},
                waiting={"reason": "CrashLoopBackOff", "message": "back-off 20s restarting failed container"},
            )
        ),
        f"fetch failed: {FETCHED}",
    ),
    (
        starting(node=container("node", last={"exitCode": 137, "reason": "OOMKilled"}, restarts=1, running={})),
        "node was ended because it took more memory than its limit (OOMKilled)",
    ),
    (
        starting(node=container("node", last={"exitCode": 139, "reason": "Error"}, restarts=1, running={})),
        "node was ended by signal 11",
    ),
    (
        starting(node=container("node", terminated={"exitCode": 2, "reason": "Error", "message": " \n"})),
        "node ended with exit code 2",
    ),
    (
        starting(
            node=container(
                "node",
                waiting={"reason": "CreateContainerConfigError", "message": 'secret "flights-keys" not found'},
            )
        ),
        'node waits, CreateContainerConfigError: secret "flights-keys" not found',
    ),
    (starting(node=container("node", waiting={"reason": "CrashLoopBackOff"})), "node waits, CrashLoopBackOff"),
    (starting(node=container("node", waiting={"message": "?"})), "node waits, without a reason: ?"),
    (
        {
            "phase": "Pending",
            "conditions": [condition("PodScheduled", "False", reason="Unschedulable", message=GPU)],
        },
        f"no node takes it: {GPU}",
    ),
    (
        {"phase": "Pending", "conditions": [condition("PodScheduled", "False", reason="SchedulingGated")]},
        "no node takes it: SchedulingGated",
    ),
    (
        {"phase": "Pending", "conditions": [condition("PodScheduled", "False")]},
        "no node takes it: no reason is given",
    ),
    (
        {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no GPU is healthy"},
        "UnexpectedAdmissionError: no GPU is healthy",
    ),
    (
        {
            "phase": "Failed",
            "reason": "Evicted",
            "message": "The node was low on resource: memory.",
            "containerStatuses": [container("node", terminated={"exitCode": 137, "reason": "Error"})],
        },
        "Evicted: The node was low on resource: memory.",
    ),
    ({"phase": "Failed"}, "it failed: "),
]
FINE: list[Status] = [
    serving(),
    {},
    {"phase": "Pending"},
    starting(),
    starting(fetch=container("fetch", waiting={"reason": "PodInitializing"})),
    starting(fetch=container("fetch", running={})),
    starting(node=container("node", waiting={"reason": "ContainerCreating"})),
    starting(node=container("node", running={})),
    starting(node={"name": "node"}),
    # A first download failed and the second did not: the node is on its way.
    starting(
        fetch=container("fetch", restarts=1, last={"exitCode": 1}, terminated={"exitCode": 0}),
        node=container("node", running={}),
    ),
    serving(restartCount=7, lastState={"terminated": {"exitCode": 1}}),
]


@pytest.mark.parametrize(("status", "words"), CAUSES)
def test_a_cause_is_one_sentence(status: Status, words: str) -> None:
    assert pods.cause(pod(status=status)) == words


@pytest.mark.parametrize("status", FINE)
def test_without_a_fault_there_is_no_cause(status: Status) -> None:
    assert pods.cause(pod(status=status)) == ""


@pytest.mark.parametrize(("status", "_words"), CAUSES)
def test_a_pod_that_ends_has_no_cause(status: Status, _words: str) -> None:
    ending = pod(status=status, deletionTimestamp="2026-11-24T10:00:00Z")
    assert (pods.cause(ending), pods.ready(ending), pods.ending(ending)) == ("", False, True)


@pytest.mark.parametrize(
    ("conditions", "ready"),
    [
        ([condition("Ready")], True),
        ([condition("Ready", "False")], False),
        ([condition("Ready", "Unknown")], False),  # its machine does not answer
        ([condition("ContainersReady")], False),
        (None, False),
    ],
)
def test_ready_is_what_kubernetes_says(conditions: list[Status] | None, *, ready: bool) -> None:
    assert pods.ready(pod(status={"conditions": conditions})) == ready
    assert not pods.ready(pod(status={"conditions": conditions}, deletionTimestamp="2026-11-24T10:00:00Z"))


FAILED = {"exitCode": 1, "reason": "Error"}


@pytest.mark.parametrize(
    ("status", "for_good"),
    [
        (starting(fetch=container("fetch", restarts=1, last=FAILED, waiting={"reason": "CrashLoopBackOff"})), False),
        (starting(fetch=container("fetch", restarts=2, last=FAILED, running={})), False),  # the third start is on
        (starting(fetch=container("fetch", restarts=2, last=FAILED, waiting={"reason": "CrashLoopBackOff"})), True),
        (starting(fetch=container("fetch", restarts=2, last=FAILED, terminated=FAILED)), True),
        (starting(fetch=container("fetch", restarts=3, last=FAILED, running={})), True),
        (starting(node=container("node", restarts=2, last=FAILED, terminated=FAILED)), True),
        # The third download did it, and the node is on its way or has its own first fault.
        (starting(fetch=container("fetch", restarts=2, last=FAILED, terminated={"exitCode": 0})), False),
        (
            starting(
                fetch=container("fetch", restarts=2, last=FAILED, terminated={"exitCode": 0}),
                node=container("node", terminated=FAILED),
            ),
            False,
        ),
        # Kubernetes goes on pulling for ever, and it may succeed; the progress deadline ends that.
        (starting(node=container("node", waiting={"reason": "ImagePullBackOff"})), False),
        # It has been replaced.
        (
            {"phase": "Failed", "reason": "Evicted", "containerStatuses": [container("node", restarts=5)]},
            False,
        ),
        (serving(restartCount=9, lastState={"terminated": FAILED}), False),
        (starting(node={"name": "node"}), False),
    ],
)
def test_three_failed_starts_are_enough(status: Status, *, for_good: bool) -> None:
    assert pods.fails_for_good(pod(status=status)) == for_good


@pytest.mark.parametrize(
    ("status", "asked"),
    [
        (starting(node=container("node", terminated=FAILED)), ("node", False)),
        (
            starting(node=container("node", restarts=1, last=FAILED, waiting={"reason": "CrashLoopBackOff"})),
            ("node", True),
        ),
        (starting(node=container("node", terminated={**FAILED, "message": "it says why"})), None),
        (starting(fetch=container("fetch", terminated=FAILED)), ("fetch", False)),
        (
            starting(
                fetch=container("fetch", restarts=1, last=FAILED, terminated={"exitCode": 0}),
                node=container("node", terminated=FAILED),
            ),
            ("node", False),
        ),
        (starting(), None),
        ({}, None),
    ],
)
def test_a_container_that_ended_without_a_word_is_asked_for_its_log(
    status: Status, asked: tuple[str, bool] | None
) -> None:
    assert pods.container_to_ask(pod(status=status)) == asked


@pytest.mark.parametrize(
    ("status", "was_ready", "restarted", "end"),
    [
        (serving(), True, False, ""),
        (serving(ready=False, started=True), True, False, ""),
        (starting(node=container("node", running={})), False, False, ""),
        (
            serving(restartCount=1, started=False, lastState={"terminated": {"exitCode": 137, "reason": "OOMKilled"}}),
            False,
            True,
            "node was ended because it took more memory than its limit (OOMKilled)",
        ),
        (
            serving(restartCount=1, lastState={"terminated": {"exitCode": 0, "reason": "Completed"}}),
            True,
            True,
            "node ended with exit code 0",
        ),
        # What only prepares a pod may be started again.
        (starting(fetch=container("fetch", restarts=1, last=FAILED, running={})), False, False, ""),
        ({"containerStatuses": None}, False, False, ""),
        ({}, False, False, ""),
    ],
)
def test_what_a_pod_was_is_told_apart_from_what_it_is(
    status: Status, end: str, *, was_ready: bool, restarted: bool
) -> None:
    found = pod(status=status)
    assert (pods.was_ready(found), pods.restarted(found), pods.end(found)) == (was_ready, restarted, end)


def test_annotations_may_be_missing() -> None:
    assert pods.annotation({"metadata": {"annotations": None}}, pods.DIGEST) == ""
    assert pods.annotation({"metadata": {}}, pods.DIGEST) == ""
    assert pods.annotation({}, pods.DIGEST) == ""
    assert pods.annotation(pod(), pods.VERSION) == "1"
