"""For every value of the chart another one, and beside which others it shows: what shows nowhere is used by nobody."""

from typing import Any

from tests.chart.rendering import CANARY, CLOSED, KEY, OPEN, Json, merged

DIGEST = "sha256:" + "a" * 64
PVC: Json = {"cache": {"type": "pvc"}}
FROM_PVC: Json = {"source": {"type": "pvc", "pvc": {"claimName": "archives"}}}
FROM_IMAGE: Json = {"source": {"type": "image", "image": {"reference": f"archives@{DIGEST}"}}}
FROM_HTTP: Json = {"source": {"type": "http", "http": {"url": "https://archives.example.org"}}}
GPU: Json = {"gpu": {"enabled": True}}
DRA: Json = {"gpu": {"enabled": True, "dra": {"enabled": True}}}
HPA: Json = {"autoscaling": {"type": "hpa"}}
KEDA: Json = {"autoscaling": {"type": "keda", "prometheusAddress": "http://prometheus:9090"}}
GATEWAY: Json = {"gateway": {"enabled": True, "parentRefs": [{"name": "public"}]}}
CLOSED_GATEWAY = merged(
    GATEWAY, CLOSED, {"gateway": {"backendTLS": {"hostname": "flights.example.org", "caConfigMap": "ca"}}}
)
INGRESS: Json = {"ingress": {"enabled": True, "hosts": ["flights.example.org"]}}
MONITOR: Json = {"metrics": {"serviceMonitor": {"enabled": True}}}
RULES: Json = {"metrics": {"rules": {"enabled": True}}}
DASHBOARDS: Json = {"metrics": {"dashboards": {"enabled": True}}}
JWKS: Json = {"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}
JWT: Json = {"auth": {"jwt": {"issuer": "https://login.example.org", "audience": "flights", "jwks": JWKS}}}
PEER: Json = {"podSelector": {"matchLabels": {"app": "gateway"}}}
RESOURCES: Json = {"cpu": "3", "memory": "3Gi"}
WORDS: Json = {"example.org/team": "delays"}
NOTHING: Json = {}

OTHER: dict[str, tuple[Any, Json]] = {
    "image.registry": ("registry.example.org", NOTHING),
    "image.repository": ("node", NOTHING),
    "image.tag": ("1.2.3", NOTHING),
    "image.digest": (DIGEST, NOTHING),
    "image.pullPolicy": ("Always", NOTHING),
    "imagePullSecrets": ([{"name": "registry"}], NOTHING),
    "nameOverride": ("served", NOTHING),
    "fullnameOverride": ("served", NOTHING),
    "model.name": ("weather", NOTHING),
    "model.version": (9, NOTHING),
    "model.sha256": (DIGEST, NOTHING),
    "model.handlerConfig": ({"workers": 3}, NOTHING),
    "explain": (True, NOTHING),
    "source.type": ("http", {"source": {"http": FROM_HTTP["source"]["http"]}}),
    "source.mlflow.trackingUri": ("https://mlflow.example.org", NOTHING),
    "source.mlflow.existingSecret": ("mlflow", NOTHING),
    "source.mlflow.caConfigMap": ("company-ca", NOTHING),
    "source.pvc.claimName": ("others", FROM_PVC),
    "source.pvc.subPath": ("flights", FROM_PVC),
    "source.image.reference": (f"others@{DIGEST}", FROM_IMAGE),
    "source.image.pullPolicy": ("Always", FROM_IMAGE),
    "source.http.url": ("https://others.example.org", FROM_HTTP),
    "source.http.caConfigMap": ("company-ca", FROM_HTTP),
    "cache.type": ("pvc", NOTHING),
    "cache.sizeLimit": ("2Gi", NOTHING),
    "cache.existingClaim": ("archives", PVC),
    "cache.accessMode": ("ReadWriteOnce", merged(PVC, {"replicaCount": 1, "strategy": {"type": "Recreate"}})),
    "cache.size": ("50Gi", PVC),
    "cache.storageClassName": ("fast", PVC),
    "trust.publicKeys": ([KEY, KEY.replace("MCow", "MCox")], NOTHING),
    "insecure": (False, {key: CLOSED[key] for key in ("tls", "auth")}),
    "tls.existingSecret": ("flights-tls", NOTHING),
    "auth.apiKeys.existingSecret": ("flights-keys", NOTHING),
    "auth.jwt.issuer": ("https://other.example.org", JWT),
    "auth.jwt.audience": ("weather", JWT),
    "auth.jwt.jwks": ({"keys": [{**JWKS["keys"][0], "kid": "2"}]}, JWT),
    "replicaCount": (3, NOTHING),
    "surge": ("never", NOTHING),
    "strategy": ({"type": "Recreate"}, NOTHING),
    "startup.budgetSeconds": (600, NOTHING),
    "progressDeadlineSeconds": (400, NOTHING),
    "revisionHistoryLimit": (3, NOTHING),
    "drain.preStopSeconds": (6, NOTHING),
    "drain.requestTimeoutSeconds": (60, NOTHING),
    "terminationGracePeriodSeconds": (100, NOTHING),
    "node.maxBodyBytes": (4096, NOTHING),
    "node.jvmHeapMiB": (256, NOTHING),
    "resources.requests": (RESOURCES, NOTHING),
    "resources.limits": (RESOURCES, NOTHING),
    "fetch.resources.requests": (RESOURCES, NOTHING),
    "fetch.resources.limits": (RESOURCES, NOTHING),
    "shm.sizeLimit": ("1Gi", NOTHING),
    "gpu.enabled": (True, NOTHING),
    "gpu.count": (2, GPU),
    "gpu.resourceName": ("nvidia.com/mig-1g.5gb", GPU),
    "gpu.runtimeClassName": ("nvidia", GPU),
    "gpu.tolerations": ([{"operator": "Exists"}], GPU),
    "gpu.nodeSelector": ({"gpu": "h100"}, GPU),
    "gpu.dra.enabled": (True, GPU),
    "gpu.dra.deviceClassName": ("mig.nvidia.com", DRA),
    "nodeSelector": ({"disk": "ssd"}, NOTHING),
    "tolerations": ([{"operator": "Exists"}], NOTHING),
    "affinity": ({"podAntiAffinity": {}}, NOTHING),
    "topologySpreadConstraints": ([], NOTHING),
    "priorityClassName": ("serving", NOTHING),
    "autoscaling.type": ("hpa", NOTHING),
    "autoscaling.min": (3, HPA),
    "autoscaling.max": (9, HPA),
    "autoscaling.targetQueueMs": (50, HPA),
    "autoscaling.prometheusAddress": ("http://other:9090", KEDA),
    "autoscaling.fallbackReplicas": (5, KEDA),
    "autoscaling.behavior": ({"scaleDown": {"stabilizationWindowSeconds": 600}}, HPA),
    "pdb.enabled": (False, NOTHING),
    "pdb.maxUnavailable": (2, {"replicaCount": 5}),
    "maxCanaryShare": (100, CANARY),
    "canary.enabled": (True, {"canary": {"model": CANARY["canary"]["model"]}}),
    "canary.model.version": (9, CANARY),
    "canary.model.sha256": (DIGEST, CANARY),
    "canary.model.handlerConfig": ({"workers": 3}, CANARY),
    "canary.image": ({"tag": "1.2.3"}, CANARY),
    "canary.replicaCount": (3, CANARY),
    "canary.weight": (5, CANARY),
    "canary.mirror": (20, CANARY),
    "service.type": ("LoadBalancer", NOTHING),
    "service.port": (80, NOTHING),
    "service.nodePort": (30080, {"service": {"type": "NodePort"}}),
    "service.appProtocol": ("kubernetes.io/h2c", NOTHING),
    "service.annotations": (WORDS, NOTHING),
    "gateway.enabled": (True, {"gateway": {"parentRefs": [{"name": "public"}]}}),
    "gateway.parentRefs": ([{"name": "other"}], GATEWAY),
    "gateway.hostnames": (["flights.example.org"], GATEWAY),
    "gateway.annotations": (WORDS, GATEWAY),
    "gateway.backendTLS.hostname": ("other.example.org", CLOSED_GATEWAY),
    "gateway.backendTLS.caConfigMap": ("other", CLOSED_GATEWAY),
    "ingress.enabled": (True, {"ingress": {"hosts": ["flights.example.org"]}}),
    "ingress.className": ("nginx", INGRESS),
    "ingress.annotations": (WORDS, INGRESS),
    "ingress.hosts": (["other.example.org"], INGRESS),
    "ingress.tls": ([{"secretName": "public", "hosts": ["flights.example.org"]}], INGRESS),
    "networkPolicy.enabled": (False, NOTHING),
    "networkPolicy.http.from": ([PEER], NOTHING),
    "networkPolicy.metrics.namespaces": (["monitoring"], NOTHING),
    "networkPolicy.metrics.from": ([PEER], NOTHING),
    "networkPolicy.egress": ([{"to": [PEER]}], NOTHING),
    "metrics.serviceMonitor.enabled": (True, NOTHING),
    "metrics.serviceMonitor.labels": (WORDS, MONITOR),
    "metrics.serviceMonitor.annotations": (WORDS, MONITOR),
    "metrics.serviceMonitor.interval": ("30s", MONITOR),
    "metrics.serviceMonitor.scrapeTimeout": ("5s", MONITOR),
    "metrics.rules.enabled": (True, NOTHING),
    "metrics.rules.labels": (WORDS, RULES),
    "metrics.rules.annotations": (WORDS, RULES),
    "metrics.dashboards.enabled": (True, NOTHING),
    "metrics.dashboards.labels": (WORDS, DASHBOARDS),
    "metrics.dashboards.annotations": (WORDS, DASHBOARDS),
    "test.existingSecret": ("flights-test", NOTHING),
    "test.serverName": ("flights.example.org", CLOSED),
    "serviceAccount.create": (False, NOTHING),
    "serviceAccount.name": ("served", NOTHING),
    "serviceAccount.annotations": (WORDS, NOTHING),
    "podSecurityContext": ({"runAsUser": 2000}, NOTHING),
    "securityContext": ({"readOnlyRootFilesystem": False}, NOTHING),
    "commonLabels": (WORDS, NOTHING),
    "podLabels": (WORDS, NOTHING),
    "podAnnotations": (WORDS, NOTHING),
    "extraEnv": ([{"name": "TZ", "value": "{{ .Release.Name }}"}], NOTHING),
    "extraVolumes": ([{"name": "{{ .Release.Name }}-more", "emptyDir": {}}], NOTHING),
    "extraVolumeMounts": ([{"name": "tmp", "mountPath": "/{{ .Release.Name }}"}], NOTHING),
    "initContainers": ([{"name": "{{ .Release.Name }}-first", "image": "busybox:1.36"}], NOTHING),
    "sidecars": ([{"name": "{{ .Release.Name }}-beside", "image": "busybox:1.36"}], NOTHING),
    "extraObjects": (
        [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-more"}}],
        NOTHING,
    ),
}
"""By path: another value, and the values beside which it shows."""

REFUSING: dict[str, tuple[Any, Json, str]] = {
    "image.requireDigest": (True, {"image": {"tag": "1.2.3"}}, "digest"),
}
"""Values that show in a refusal alone."""


def base(beside: Json) -> Json:
    return merged(OPEN, beside)
