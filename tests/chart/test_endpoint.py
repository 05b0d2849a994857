"""An endpoint's pods, its canary, who may reach them, and what helm prints about it."""

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from deploy.cli import cli
from deploy.node.routing import RoutingFile
from deploy.node.serves import read_serves
from deploy.settings import read_settings
from tests.chart.other_values import FROM_HTTP, FROM_IMAGE, FROM_PVC, GATEWAY, HPA, JWT, KEDA, PVC, base
from tests.chart.rendering import (
    CANARY,
    CLOSED,
    EXAMPLES,
    MAJORS,
    OPEN,
    Json,
    at,
    deployment,
    differences,
    environment,
    example,
    merged,
    node,
    notes,
    of_kind,
    one,
    pod,
    render,
)

ROUTING = "configMap"


def serves(template: Json) -> Json:
    return dict(json.loads(environment(node(template))["SHIPWAY_SERVES"]))


def routing(objects: list[Json]) -> Json:
    return dict(json.loads(one(objects, "ConfigMap", "-routing")["data"]["routing.json"]))


def volume(template: Json, name: str) -> Json:
    (found,) = (each for each in template["spec"]["volumes"] if each["name"] == name)
    return dict(found)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_node_reads_what_the_pod_template_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = render(example(name))
    RoutingFile.model_validate(routing(objects))
    for deployed in of_kind(objects, "Deployment"):
        template = deployed["spec"]["template"]
        with monkeypatch.context() as patch:
            for variable, value in environment(node(template)).items():
                patch.setenv(variable, value)
            settings = read_settings()
        settings.refuse_exposed()
        assert settings.serves is not None
        annotations = template["metadata"]["annotations"]
        assert str(read_serves(settings.serves).version) == annotations["shipway.dev/version"]
        assert {port["name"]: port["containerPort"] for port in node(template)["ports"]} == {
            "http": settings.http_port, "peer": settings.peer_port, "metrics": settings.metrics_port
        }  # fmt: skip
        mounts = [Path(mount["mountPath"]) for mount in node(template)["volumeMounts"]]
        files = (settings.tls_certificate, settings.tls_key, settings.api_keys, settings.jwt_jwks)
        assert all(path.parent in mounts for path in files if path)
        if settings.routing_dir:
            assert {settings.routing_dir / "release", settings.routing_dir / "rollout"} <= set(mounts)
        (fetch, *_) = template["spec"]["initContainers"]
        command, *arguments = fetch["args"]
        cli.commands[command].make_context(command, arguments, obj=settings)


def test_a_selector_of_the_users_own_is_left_as_it_is() -> None:
    constraint = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
    own = {**constraint, "labelSelector": {"matchLabels": {"team": "ml"}}}
    (found, left_out) = pod(render(OPEN, at("topologySpreadConstraints", [own, constraint])))["spec"][
        "topologySpreadConstraints"
    ]
    assert found == own
    assert left_out["labelSelector"]["matchLabels"]["shipway.dev/track"] == "stable"


def test_a_pod_template_says_all_that_a_version_is() -> None:
    handler = {"workers": 2, "batchSize": 32, "responseTimeoutSeconds": 30, "maxQueue": 256}
    template = pod(render(OPEN, at("model.handlerConfig", handler), at("explain", True)))
    digest = "sha256:" + "7" * 64
    assert serves(template) == {
        "model": "flights", "version": 7, "digest": digest, "explain": True, "handler": handler
    }  # fmt: skip
    assert template["metadata"]["annotations"] == {
        "shipway.dev/model": "flights", "shipway.dev/version": "7", "shipway.dev/digest": digest
    }  # fmt: skip
    (fetch,) = template["spec"]["initContainers"]
    assert fetch["args"] == ["fetch", "flights", "7", digest]
    assert fetch["image"] == node(template)["image"]


def test_what_was_packaged_is_not_overridden_unless_it_is_said() -> None:
    assert "handler" not in serves(pod(render(OPEN)))
    assert serves(pod(render(OPEN, at("model.handlerConfig", {"workers": 2}))))["handler"] == {"workers": 2}


def test_numbers_stay_whole_however_large() -> None:
    objects = render(OPEN, at("model.version", 2147483647), at("node.maxBodyBytes", 2147483647))
    assert serves(pod(objects))["version"] == 2147483647
    assert environment(node(pod(objects)))["SHIPWAY_MAX_BODY_BYTES"] == "2147483647"


def test_a_canary_is_the_same_pod_with_other_values() -> None:
    objects = render(base(CANARY), CLOSED, JWT)
    stable, canary = ({"kind": "Pod", **pod(objects, track)} for track in ("stable", "canary"))
    for template in (stable, canary):
        template["metadata"] = {**template["metadata"], "name": "pod"}
    changed = {path.removeprefix("Pod/pod") for path in differences([stable], [canary])}
    here = "/spec/containers/node"
    assert {path for path in changed if not path.startswith(("/spec/volumes/ro", f"{here}/volumeMounts/ro"))} == {
        "/metadata/labels/shipway.dev/track",
        "/metadata/annotations/shipway.dev/version",
        "/metadata/annotations/shipway.dev/digest",
        "/spec/initContainers/fetch/args/2",
        "/spec/initContainers/fetch/args/3",
        "/spec/topologySpreadConstraints/0/labelSelector/matchLabels/shipway.dev/track",
        f"{here}/env/SHIPWAY_SERVES/value",
        f"{here}/env/SHIPWAY_ROUTING_DIR/name",
        f"{here}/env/SHIPWAY_ROUTING_DIR/value",
        f"{here}/env/SHIPWAY_NOTICE_SECONDS/name",
        f"{here}/env/SHIPWAY_NOTICE_SECONDS/value",
    }
    of_stable, of_canary = ({each["name"] for each in template["spec"]["volumes"]} for template in (stable, canary))
    assert of_stable - of_canary == {"routing", "rollout"}


def test_a_canary_has_the_stable_handler_settings_unless_it_has_its_own() -> None:
    shared = render(base(CANARY), at("model.handlerConfig", {"workers": 2}))
    assert serves(pod(shared, "canary"))["handler"] == {"workers": 2}
    own = render(
        base(CANARY), at("model.handlerConfig", {"workers": 2}), at("canary.model.handlerConfig", {"workers": 5})
    )
    assert (serves(pod(own))["handler"], serves(pod(own, "canary"))["handler"]) == ({"workers": 2}, {"workers": 5})


@pytest.mark.parametrize(
    ("values", "replicas"),
    [
        ({"replicaCount": 2}, 1),
        ({"replicaCount": 4, "maxCanaryShare": 25}, 1),
        ({"replicaCount": 5, "maxCanaryShare": 25}, 2),
        ({"replicaCount": 3, "maxCanaryShare": 100}, 3),
        ({"replicaCount": 1, "maxCanaryShare": 1}, 1),
        ({"autoscaling": {"type": "hpa", "min": 2, "max": 10}}, 5),
        ({"canary": {"replicaCount": 7}}, 7),
    ],
)
def test_a_canary_s_pods_carry_the_largest_share_that_it_may_get(values: Json, replicas: int) -> None:
    assert deployment(render(base(CANARY), values), "canary")["spec"]["replicas"] == replicas


def test_routing_names_the_canary_by_version_and_digest() -> None:
    assert routing(render(OPEN)) == {"canary": None}
    assert routing(render(base(CANARY), at("canary.weight", 5), at("canary.mirror", 20))) == {
        "canary": {
            "version": 8,
            "digest": "sha256:" + "8" * 64,
            "host": "flights-shipway-canary.team.svc",
            "port": 8081,
            "weight": 5,
            "mirror": 20,
        }
    }


def test_stable_pods_read_both_routing_files_and_the_canary_none() -> None:
    objects = render(base(CANARY))
    stable = pod(objects)
    assert volume(stable, "routing")["configMap"] == {"name": "flights-shipway-routing"}
    assert volume(stable, "rollout")["configMap"] == {"name": "flights-shipway-rollout", "optional": True}
    mounts = {each["name"]: each["mountPath"] for each in node(stable)["volumeMounts"]}
    assert mounts["routing"] == environment(node(stable))["SHIPWAY_ROUTING_DIR"] + "/release"
    assert mounts["rollout"] == environment(node(stable))["SHIPWAY_ROUTING_DIR"] + "/rollout"
    assert "SHIPWAY_ROUTING_DIR" not in environment(node(pod(objects, "canary")))


def test_no_configuration_that_names_a_version_is_mounted() -> None:
    """It would be gone, or another, when an old pod starts again."""
    names = {each["metadata"]["name"] for each in of_kind(render(base(CANARY)), "ConfigMap")}
    later = {each["metadata"]["name"] for each in of_kind(render(base(CANARY), at("model.version", 9)), "ConfigMap")}
    assert names == later


def test_clients_reach_stable_pods_alone() -> None:
    objects = render(base(CANARY))
    public, peers = one(objects, "Service", "flights-shipway"), one(objects, "Service", "-canary")
    assert public["spec"]["selector"]["shipway.dev/track"] == "stable"
    assert [port["name"] for port in public["spec"]["ports"]] == ["http"]
    assert peers["spec"]["clusterIP"] == "None"
    assert peers["spec"]["selector"]["shipway.dev/track"] == "canary"
    assert not peers["spec"].get("publishNotReadyAddresses")


def test_peers_are_the_release_s_own_pods_alone() -> None:
    policy = one(render(base(CANARY)), "NetworkPolicy")["spec"]
    by_port = {rule["ports"][0]["port"]: rule for rule in policy["ingress"]}
    own = {"app.kubernetes.io/name": "shipway", "app.kubernetes.io/instance": "flights"}
    assert by_port.keys() == {"http", "peer", "metrics"}
    assert "from" not in by_port["http"]
    assert by_port["peer"]["from"] == [{"podSelector": {"matchLabels": own}}]
    assert by_port["metrics"]["from"] == [{"podSelector": {}}]
    assert policy["podSelector"] == {"matchLabels": own}
    assert policy["policyTypes"] == ["Ingress"]


def test_helm_test_reaches_a_closed_endpoint() -> None:
    objects = render(example("hardened"))
    policy = one(objects, "NetworkPolicy")["spec"]
    (http,) = (rule for rule in policy["ingress"] if rule["ports"] == [{"port": "http"}])
    test = one(objects, "Pod", "-test")
    assert {"podSelector": {"matchLabels": test["metadata"]["labels"]}} in http["from"]
    (container,) = test["spec"]["containers"]
    args = container["args"]
    assert args[args.index("--url") + 1] == "https://flights-shipway.team.svc:8080"
    assert "--certificate" in args
    assert "--header-file" in args
    mounted = {each["name"] for each in container["volumeMounts"]}
    assert {"tls", "client"} <= mounted
    assert volume({"spec": test["spec"]}, "tls")["secret"]["items"] == [{"key": "tls.crt", "path": "tls.crt"}]


def test_helm_test_asks_every_version_in_service() -> None:
    test = one(render(base(CANARY)), "Pod", "-test")
    (container,) = test["spec"]["containers"]
    versions = [place for place, each in enumerate(container["args"]) if each == "--version"]
    asked = [tuple(container["args"][place + 1 : place + 3]) for place in versions]
    assert asked == [("7", "sha256:" + "7" * 64), ("8", "sha256:" + "8" * 64)]
    assert [each["args"][-2:] for each in test["spec"]["initContainers"]] == [list(pair) for pair in asked]
    assert test["metadata"]["annotations"]["helm.sh/hook"] == "test"


def test_tls_and_keys_are_mounted_for_the_group_alone() -> None:
    template = pod(render(base(CLOSED)))
    variables = environment(node(template))
    mounts = {each["name"]: each["mountPath"] for each in node(template)["volumeMounts"]}
    for name, setting, secret in (
        ("tls", "SHIPWAY_TLS_KEY", "flights-tls"),
        ("keys", "SHIPWAY_API_KEYS", "flights-keys"),
    ):
        assert variables[setting].startswith(mounts[name] + "/")
        assert volume(template, name)["secret"] == {"secretName": secret, "defaultMode": 0o440}
    assert template["spec"]["securityContext"]["fsGroup"] == 1000
    assert "SHIPWAY_INSECURE" not in variables
    assert environment(node(pod(render(OPEN))))["SHIPWAY_INSECURE"] == "true"


@pytest.mark.parametrize("values", [OPEN, base(CANARY), base(merged(CLOSED, JWT))])
def test_pods_fit_the_restricted_standard(values: Json) -> None:
    objects = render(values)
    for template in (pod(objects), one(objects, "Pod", "-test")):
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in (*spec["initContainers"], *spec["containers"]):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize(
    ("source", "kind", "read_only", "arguments"),
    [
        ({}, "emptyDir", False, []),
        (PVC, "persistentVolumeClaim", False, []),
        (FROM_PVC, "persistentVolumeClaim", True, ["--offline"]),
        (FROM_IMAGE, "image", True, ["--offline"]),
        (FROM_HTTP, "emptyDir", False, ["--from", "https://archives.example.org"]),
    ],
)
def test_archives_come_from_where_values_say(source: Json, kind: str, *, read_only: bool, arguments: list[str]) -> None:
    template = pod(render(base(source)))
    (fetch,) = template["spec"]["initContainers"]
    assert kind in volume(template, "archives")
    assert fetch["args"][1:-3] == arguments
    mounts = [next(m for m in each["volumeMounts"] if m["name"] == "archives") for each in (fetch, node(template))]
    assert [mount.get("readOnly", False) for mount in mounts] == [read_only, True]
    assert ("SHIPWAY_MLFLOW_URI" in environment(fetch)) == (not arguments)


def test_credentials_of_mlflow_reach_the_init_container_alone() -> None:
    template = pod(render(OPEN, at("source.mlflow.existingSecret", "mlflow")))
    (fetch,) = template["spec"]["initContainers"]
    assert fetch["envFrom"] == [{"secretRef": {"name": "mlflow"}}]
    assert "envFrom" not in node(template)


def test_a_gateway_trusts_the_node_s_certificate() -> None:
    names = {"gateway": {"backendTLS": {"hostname": "flights.example.org", "caConfigMap": "ca"}}}
    objects = render(base(GATEWAY), CLOSED, names)
    (backend,) = one(objects, "HTTPRoute")["spec"]["rules"][0]["backendRefs"]
    assert backend == {"name": "flights-shipway", "port": 8080}
    policy = one(objects, "BackendTLSPolicy")["spec"]
    assert policy["targetRefs"][0]["name"] == backend["name"]
    assert policy["validation"]["hostname"] == "flights.example.org"
    assert not of_kind(render(base(GATEWAY)), "BackendTLSPolicy")


COMMAND = re.compile(r"^  ((?:helm|kubectl) .*)$", re.MULTILINE)
OURS = re.compile(r"^  (shipway .*)$", re.MULTILINE)


@pytest.mark.parametrize("major", MAJORS)
@pytest.mark.parametrize("values", [OPEN, base(merged(CANARY, {"canary": {"image": {"tag": "2.0.0"}}})), base(CLOSED)])
def test_printed_commands_are_of_this_release_and_this_helm(values: Json, major: int) -> None:
    commands = [shlex.split(line) for line in COMMAND.findall(notes(values, major=major))]
    assert {command[1] for command in commands} == {"test", "upgrade", "history", "rollback"}
    for command in commands:
        assert command[2] == "flights"
        assert command[command.index("--namespace") + 1] == "team"
        if command[1] == "upgrade":
            assert "--reset-then-reuse-values" in command
            assert ("--atomic" in command) <= (major == 3)
            assert ("--rollback-on-failure" in command) <= (major == 4)
            assert "--wait" in command
    assert any({3: "--atomic", 4: "--rollback-on-failure"}[major] in command for command in commands)


def test_our_own_commands_take_what_is_printed() -> None:
    printed = [shlex.split(line) for line in OURS.findall(notes(OPEN))]
    assert [command[1] for command in printed] == ["rollout", "status", "rollback"]
    for _, verb, *arguments in printed:
        command = cli.commands[verb]
        context = command.make_context(verb, [word.replace("$VERSION", "8") for word in arguments], obj=read_settings())
        assert (context.obj.helm_release, context.obj.helm_namespace) == ("flights", "team")
        assert context.params.get("name", "flights") == "flights"


def applied(command: list[str], stored: Json) -> Json:
    """The values after `helm upgrade --reset-then-reuse-values`: what is set, merged into what there was."""
    given: Json = {}
    for option, value in pairwise(command):
        if option in ("--set", "--set-json"):
            path, _, text = value.partition("=")
            given = merged(given, at(path, json.loads(text) if option == "--set-json" else yaml.safe_load(text)))
    return without_nulls(merged(stored, given))


def without_nulls(values: Json) -> Json:
    """Helm takes away what is set to null."""
    found = {key: without_nulls(value) if isinstance(value, dict) else value for key, value in values.items()}
    return {key: value for key, value in found.items() if value is not None}


def commands(values: Json, word: str) -> list[str]:
    (found,) = (shlex.split(line) for line in COMMAND.findall(notes(values)) if word in line)
    return found


@pytest.mark.parametrize("image", [{"tag": "2.0.0"}, {"digest": "sha256:" + "2" * 64}, {}])
@pytest.mark.parametrize("handler", [{"workers": 3}, {}])
def test_promoted_pod_is_what_was_judged_and_the_next_canary_begins_anew(image: Json, handler: Json) -> None:
    before = {"image": {"digest": "sha256:" + "1" * 64}, "model": {"handlerConfig": {"batchSize": 64}}}
    own = {"canary": {"image": image, "model": {"handlerConfig": handler}}}
    stored = base(merged(CANARY, before, own))
    judged = node(pod(render(stored), "canary"))
    promoted = applied(commands(stored, "model.version=8"), stored)
    stable = node(pod(render(promoted)))
    assert stable["image"] == judged["image"]
    assert environment(stable)["SHIPWAY_SERVES"] == environment(judged)["SHIPWAY_SERVES"]
    assert not promoted["canary"]["enabled"]

    following = merged(promoted, at("canary.enabled", True), at("canary.model.version", 9))
    assert node(pod(render(following), "canary"))["image"] == stable["image"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (OPEN, "A rollback needs MLflow: archives are cached in each pod alone"),
        (base(PVC), "A rollback needs nothing but the cluster: archives come from the shared cache."),
        (base(FROM_IMAGE), "A rollback needs nothing but the cluster: archives come from a mounted volume."),
        (base({"surge": "never", "replicaCount": 1}), "WARNING: surge is never and there is one replica"),
        (OPEN, "WARNING: insecure is true"),
        (base(CLOSED), "Set test.existingSecret first"),
        (base(merged(CANARY, HPA)), "While the canary is on, nothing is scaled down."),
        (base(KEDA), "while KEDA does not work, use --wait=legacy"),
        (
            base(at("metrics.serviceMonitor.enabled", True)),
            "no Prometheus outside of this namespace reaches the metrics",
        ),
    ],
)
def test_notes_say_what_these_values_mean(values: Json, words: str) -> None:
    assert words in notes(values)


def test_notes_warn_of_nothing_that_is_well() -> None:
    said = notes(base(merged(CLOSED, PVC, {"test": {"existingSecret": "flights-test"}})))
    assert "WARNING" not in said
    assert "test.existingSecret" not in said
