"""What checkov says to the examples."""

import pytest

from tests.chart.checkov import findings
from tests.chart.rendering import EXAMPLES, example, text

PODS = ("Deployment", "Pod")
OBJECTS = ("ConfigMap", "Deployment", "Ingress", "Pod", "Service", "ServiceAccount")
EXPLAINED: dict[str, tuple[tuple[str, ...], str]] = {
    "CKV2_K8S_6": (("Pod",), "No network policy is for the pod of `helm test`: it listens nowhere."),
    "CKV_K8S_8": (("Pod",), "No liveness probe is in the pod of `helm test`: it ends by itself."),
    "CKV_K8S_9": (("Pod",), "No readiness probe is in the pod of `helm test`: nobody is sent there."),
    "CKV_K8S_15": (
        PODS,
        "IfNotPresent starts pods while the registry is down; tags are not moved, and `latest` refused.",
    ),
    "CKV_K8S_21": (OBJECTS, "Helm sets the namespace; the templates name none."),
    "CKV_K8S_35": (
        PODS,
        "MLflow's own client reads its user and password from variables, in the init container alone.",
    ),
    "CKV_K8S_40": (
        PODS,
        "The image's user is 1000, so that volumes of other tools fit; podSecurityContext takes another.",
    ),
    "CKV_K8S_43": (PODS, "A digest is the user's to give; image.requireDigest insists on it (the example hardened)."),
}
"""By check: of which kinds of object it is right, and why that stays."""


@pytest.mark.timeout(900)  # the first time it is installed, 290 MB
def test_point_07_checkov_finds_nothing_that_is_not_explained() -> None:
    found = findings({name: text(example(name)) for name in EXAMPLES})
    unexplained = {(check, kind) for check, kind in found if kind not in EXPLAINED.get(check, ((), ""))[0]}
    assert unexplained == set()
    assert {check for check, _ in found} == EXPLAINED.keys()


def test_point_07_the_hardened_example_needs_fewer_explanations() -> None:
    found = {check for check, kind in findings({"hardened": text(example("hardened"))}) if kind == "Deployment"}
    assert found == {"CKV_K8S_21", "CKV_K8S_35", "CKV_K8S_40"}
