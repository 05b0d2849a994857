{{/*
What the schema cannot say, or must not be skipped (`--skip-schema-validation`): each message has the value, what was
found, and what is allowed. All of them at once, so that nobody corrects one after the other.
*/}}
{{- define "shipway.validate" -}}
{{- $problems := concat
  (fromJsonArray (include "shipway.problems.removed" .))
  (fromJsonArray (include "shipway.problems.model" .))
  (fromJsonArray (include "shipway.problems.image" .))
  (fromJsonArray (include "shipway.problems.source" .))
  (fromJsonArray (include "shipway.problems.edge" .))
  (fromJsonArray (include "shipway.problems.times" .))
  (fromJsonArray (include "shipway.problems.replicas" .))
  (fromJsonArray (include "shipway.problems.canary" .))
  (fromJsonArray (include "shipway.problems.pod" .))
}}
{{- if $problems }}
{{- fail (printf "these values cannot be used:\n- %s" (join "\n- " $problems)) }}
{{- end }}
{{- end }}

{{/* Keys of TorchServe's own chart, and later those that this chart gives up: old path, what to use. */}}
{{- define "shipway.removed" -}}
namespace: use helm's option --namespace
torchserve_image: use image.registry, image.repository, and image.tag or image.digest
torchserve: use gpu.count for n_gpu, resources for n_cpu and memory_limit; ports cannot be chosen
deployment: use replicaCount for deployment.replicas
persistentVolume: use source.pvc for archives of yours, cache for fetched ones
persitant_volume: use source.pvc for archives of yours, cache for fetched ones
{{- end }}

{{- define "shipway.problems.removed" -}}
{{- $problems := list }}
{{- range $key, $instead := fromYaml (include "shipway.removed" .) }}
{{- if hasKey $.Values $key }}
{{- $problems = append $problems (printf "%s is no value of this chart: %s" $key $instead) }}
{{- end }}
{{- end }}
{{- toJson $problems }}
{{- end }}

{{- define "shipway.problems.model" -}}
{{- $problems := list }}
{{- $models := dict "model" .Values.model }}
{{- if .Values.canary.enabled }}{{ $_ := set $models "canary.model" .Values.canary.model }}{{ end }}
{{- if not .Values.model.name }}
{{- $problems = append $problems "model.name is empty: it must be a registered name in MLflow" }}
{{- end }}
{{- range $path, $model := $models }}
{{- /* A number of a values file is a float, which prints as 1e+06 from there on. */}}
{{- $version := ternary (printf "%.10g" (float64 $model.version)) (toString ($model.version | default "")) (kindIs "float64" $model.version) }}
{{- if not (regexMatch "^[1-9][0-9]*$" $version) }}
{{- $problems = append $problems (printf "%s.version is %q: it must be a version's number; an alias or `latest` moves, and a rollback would move with it" $path $version) }}
{{- end }}
{{- if not (regexMatch "^sha256:[0-9a-f]{64}$" (toString $model.sha256)) }}
{{- $problems = append $problems (printf "%s.sha256 is %q: it must be sha256: and 64 hex digits, as `shipway package` prints them" $path (toString $model.sha256)) }}
{{- end }}
{{- end }}
{{- if not .Values.trust.publicKeys }}
{{- $problems = append $problems "trust.publicKeys is empty: at least one public key (PEM) is needed, or every archive is refused; --set-file trust.publicKeys[0]=FILE" }}
{{- end }}
{{- range .Values.trust.publicKeys }}
{{- if not (hasPrefix "-----BEGIN PUBLIC KEY-----" (trim .)) }}
{{- $problems = append $problems "trust.publicKeys has a text that is no public key: each must begin with -----BEGIN PUBLIC KEY-----" }}
{{- end }}
{{- end }}
{{- toJson $problems }}
{{- end }}

{{- define "shipway.problems.image" -}}
{{- $problems := list }}
{{- $images := dict "image" .Values.image }}
{{- if .Values.canary.enabled }}{{ $_ := set $images "canary.image" .Values.canary.image }}{{ end }}
{{- range $path, $image := $images }}
{{- if eq (toString $image.tag) "latest" }}
{{- $problems = append $problems (printf "%s.tag is \"latest\": it must be a tag that stays, or a digest" $path) }}
{{- end }}
{{- if and $image.digest (not (regexMatch "^sha256:[0-9a-f]{64}$" $image.digest)) }}
{{- $problems = append $problems (printf "%s.digest is %q: it must be sha256: and 64 hex digits" $path $image.digest) }}
{{- end }}
{{- end }}
{{- if and .Values.image.requireDigest (not (contains "@sha256:" (include "shipway.image" (dict "root" .)))) }}
{{- $problems = append $problems "image.digest is empty, and image.requireDigest wants one" }}
{{- end }}
{{- if and .Values.image.requireDigest .Values.canary.enabled (not (contains "@sha256:" (include "shipway.image" (dict "root" . "image" .Values.canary.image)))) }}
{{- $problems = append $problems "canary.image has a tag and no digest, and image.requireDigest wants one" }}
{{- end }}
{{- toJson $problems }}
{{- end }}

{{- define "shipway.problems.source" -}}
{{- $problems := list }}
{{- $source := .Values.source }}
{{- if not (has $source.type (list "mlflow" "pvc" "image" "http")) }}
{{- $problems = append $problems (printf "source.type is %q: it must be mlflow, pvc, image or http" $source.type) }}
{{- end }}
{{- if and (eq $source.type "mlflow") (not (regexMatch "^https?://" $source.mlflow.trackingUri)) }}
{{- $problems = append $problems (printf "source.mlflow.trackingUri is %q: it must be the http:// or https:// address of the tracking server, or source.type another one" $source.mlflow.trackingUri) }}
{{- end }}
{{- if and (eq $source.type "http") (not (regexMatch "^https?://" $source.http.url)) }}
{{- $problems = append $problems (printf "source.http.url is %q: it must be the http:// or https:// address below which the archives lie" $source.http.url) }}
{{- end }}
{{- if and (eq $source.type "pvc") (not $source.pvc.claimName) }}
{{- $problems = append $problems "source.pvc.claimName is empty, and source.type is pvc: it must be a claim that has the archives" }}
{{- end }}
{{- if eq $source.type "image" }}
{{- if not (regexMatch "^[^@ ]+@sha256:[0-9a-f]{64}$" $source.image.reference) }}
{{- $problems = append $problems (printf "source.image.reference is %q: it must be an image by its digest, registry/repository@sha256:..." $source.image.reference) }}
{{- end }}
{{- if not (semverCompare ">=1.33.0-0" .Capabilities.KubeVersion.Version) }}
{{- $problems = append $problems (printf "source.type is image, and the cluster has Kubernetes %s: image volumes need 1.33" .Capabilities.KubeVersion.Version) }}
{{- end }}
{{- end }}
{{- if and (has $source.type (list "mlflow" "http")) (eq .Values.cache.type "pvc") (eq .Values.cache.accessMode "ReadWriteOnce") }}
{{- if or (ne (.Values.strategy.type | default "RollingUpdate") "Recreate") (gt (include "shipway.mostReplicas" . | int) 1) .Values.canary.enabled }}
{{- $problems = append $problems "cache.accessMode is ReadWriteOnce: a new pod on another node would wait for the old one for ever; use ReadWriteMany, cache.type emptyDir, or strategy.type Recreate with one replica and no canary" }}
{{- end }}
{{- end }}
{{- toJson $problems }}
{{- end }}

{{- define "shipway.problems.edge" -}}
{{- $problems := list }}
{{- $jwt := .Values.auth.jwt }}
{{- $given := compact (list $jwt.issuer $jwt.audience (ternary "" "jwks" (empty $jwt.jwks))) }}
{{- if and $given (lt (len $given) 3) }}
{{- $problems = append $problems "auth.jwt is given in part: issuer, audience and jwks go together" }}
{{- end }}
{{- if not .Values.insecure }}
{{- if not .Values.tls.existingSecret }}
{{- $problems = append $problems "tls.existingSecret is empty: it must be a Secret of type kubernetes.io/tls, or insecure must be true" }}
{{- end }}
{{- if not (or .Values.auth.apiKeys.existingSecret $jwt.issuer) }}
{{- $problems = append $problems "auth is empty: auth.apiKeys.existingSecret or auth.jwt is needed, or insecure must be true" }}
{{- end }}
{{- end }}
{{- if and .Values.gateway.enabled (not .Values.gateway.parentRefs) }}
{{- $problems = append $problems "gateway.parentRefs is empty, and gateway.enabled is true: it must name a Gateway" }}
{{- end }}
{{- if and .Values.gateway.enabled .Values.tls.existingSecret (not (and .Values.gateway.backendTLS.hostname .Values.gateway.backendTLS.caConfigMap)) }}
{{- $problems = append $problems "gateway.backendTLS is empty in part, and the node speaks TLS: hostname and caConfigMap are needed, or the gateway does not trust it" }}
{{- end }}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) }}
{{- $problems = append $problems "ingress.hosts is empty, and ingress.enabled is true: it must have a host name" }}
{{- end }}
{{- toJson $problems }}
{{- end }}

{{- define "shipway.problems.times" -}}
{{- $problems := list }}
{{- $deadline := include "shipway.progressDeadlineSeconds" . | int }}
{{- if le $deadline (.Values.startup.budgetSeconds | int) }}
{{- $problems = append $problems (printf "progressDeadlineSeconds is %d: it must be more than startup.budgetSeconds, %d, or a rollout fails while its pod may still get ready" $deadline (.Values.startup.budgetSeconds | int)) }}
{{- end }}
{{- $grace := include "shipway.gracePeriodSeconds" . | int }}
{{- $least := include "shipway.leastGracePeriodSeconds" . | int }}
{{- if lt $grace $least }}
{{- $problems = append $problems (printf "terminationGracePeriodSeconds is %d: it must be at least drain.preStopSeconds + drain.requestTimeoutSeconds + 10, %d, or requests are cut off" $grace $least) }}
{{- end }}
{{- toJson $problems }}
{{- end }}

{{- define "shipway.problems.replicas" -}}
{{- $problems := list }}
{{- $scaling := .Values.autoscaling }}
{{- if not (has $scaling.type (list "none" "hpa" "keda")) }}
{{- $problems = append $problems (printf "autoscaling.type is %q: it must be none, hpa or keda" $scaling.type) }}
{{- end }}
{{- if and (ne $scaling.type "none") (gt ($scaling.min | int) ($scaling.max | int)) }}
{{- $problems = append $problems (printf "autoscaling.min is %d: it must not be more than autoscaling.max, %d" ($scaling.min | int) ($scaling.max | int)) }}
{{- end }}
{{- if and (eq $scaling.type "keda") (not $scaling.prometheusAddress) }}
{{- $problems = append $problems "autoscaling.prometheusAddress is empty, and autoscaling.type is keda: it must be the address of Prometheus" }}
{{- end }}
{{- if and .Values.gpu.enabled .Values.gpu.dra.enabled (not (semverCompare ">=1.34.0-0" .Capabilities.KubeVersion.Version)) }}
{{- $problems = append $problems (printf "gpu.dra.enabled is true, and the cluster has Kubernetes %s: resource.k8s.io/v1 needs 1.34" .Capabilities.KubeVersion.Version) }}
{{- end }}
{{- toJson $problems }}
{{- end }}

{{- define "shipway.problems.canary" -}}
{{- $problems := list }}
{{- $canary := .Values.canary }}
{{- range $key := list "weight" "mirror" }}
{{- $share := get $canary $key | int }}
{{- if and (gt $share 0) (not $canary.enabled) }}
{{- $problems = append $problems (printf "canary.%s is %d, and canary.enabled is false: it must be 0" $key $share) }}
{{- end }}
{{- end }}
{{- if gt ($canary.weight | int) ($.Values.maxCanaryShare | int) }}
{{- $problems = append $problems (printf "canary.weight is %d: it must not be more than maxCanaryShare, %d, for which its pods are counted" ($canary.weight | int) ($.Values.maxCanaryShare | int)) }}
{{- end }}
{{- if and $canary.enabled (eq ($canary.model.version | int) ($.Values.model.version | int)) }}
{{- $problems = append $problems (printf "canary.model.version is %d, and model.version too: they must differ" ($canary.model.version | int)) }}
{{- end }}
{{- toJson $problems }}
{{- end }}

{{- define "shipway.problems.pod" -}}
{{- $problems := list }}
{{- $ours := list "app.kubernetes.io/name" "app.kubernetes.io/instance" "shipway.dev/track" }}
{{- range $path, $labels := dict "commonLabels" .Values.commonLabels "podLabels" .Values.podLabels }}
{{- range $key, $_ := $labels }}
{{- if has $key $ours }}
{{- $problems = append $problems (printf "%s has %s, which the chart sets itself: pods are selected by it" $path $key) }}
{{- end }}
{{- end }}
{{- end }}
{{- $set := list "SHIPWAY_RUN_DIR" "SHIPWAY_STATE_DIR" }}
{{- range fromYamlArray (include "shipway.environment" .) }}{{ $set = append $set .name }}{{ end }}
{{- range fromYamlArray (include "shipway.nodeEnvironment" (dict "root" . "model" .Values.model "track" "stable")) }}{{ $set = append $set .name }}{{ end }}
{{- range .Values.extraEnv }}
{{- if has .name $set }}
{{- $problems = append $problems (printf "extraEnv has %s, which the chart sets itself: use its value" .name) }}
{{- end }}
{{- end }}
{{- toJson $problems }}
{{- end }}
