{{/* Names, labels and numbers that several objects share. */}}

{{- define "shipway.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 52 | trimSuffix "-" }}
{{- end }}

{{/* At most 52 characters, so that "-ledger-000017" and the like still fit. A longer one ends in its own digest: two
long releases of one namespace must not become one. */}}
{{- define "shipway.fullname" -}}
{{- $name := .Values.fullnameOverride }}
{{- if not $name }}
{{- $chart := include "shipway.name" . }}
{{- $name = ternary .Release.Name (printf "%s-%s" .Release.Name $chart) (contains $chart .Release.Name) }}
{{- end }}
{{- if gt (len $name) 52 }}
{{- $name = printf "%s-%s" (trunc 43 $name | trimSuffix "-") (sha256sum $name | trunc 8) }}
{{- end }}
{{- $name }}
{{- end }}

{{- define "shipway.serviceAccountName" -}}
{{- if .Values.serviceAccount.name }}{{ .Values.serviceAccount.name }}
{{- else }}{{ ternary (include "shipway.fullname" .) "default" .Values.serviceAccount.create }}
{{- end }}
{{- end }}

{{/* What never changes in the life of a release: selectors cannot. */}}
{{- define "shipway.selectorLabels" -}}
app.kubernetes.io/name: shipway
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Another name, so that no selector of a serving pod finds it. */}}
{{- define "shipway.testLabels" -}}
app.kubernetes.io/name: shipway-test
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "shipway.labels" -}}
{{- include "shipway.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Arguments: the root, and an image: what differs from .Values.image. */}}
{{- define "shipway.image" -}}
{{- $image := mergeOverwrite (deepCopy .root.Values.image) (.image | default dict) }}
{{- /* A tag of its own must not be shadowed by the digest of the other. */}}
{{- if and (hasKey (.image | default dict) "tag") (not (hasKey .image "digest")) }}{{ $_ := set $image "digest" "" }}{{ end }}
{{- $repository := $image.repository }}
{{- with $image.registry }}{{ $repository = printf "%s/%s" (trimSuffix "/" .) $repository }}{{ end }}
{{- if $image.digest }}{{ printf "%s@%s" $repository $image.digest }}
{{- else }}{{ printf "%s:%s" $repository ($image.tag | default .root.Chart.AppVersion) }}
{{- end }}
{{- end }}

{{- define "shipway.gracePeriodSeconds" -}}
{{- .Values.terminationGracePeriodSeconds | default (include "shipway.leastGracePeriodSeconds" .) }}
{{- end }}

{{- define "shipway.leastGracePeriodSeconds" -}}
{{- add .Values.drain.preStopSeconds .Values.drain.requestTimeoutSeconds 10 }}
{{- end }}

{{- define "shipway.progressDeadlineSeconds" -}}
{{- .Values.progressDeadlineSeconds | default (add .Values.startup.budgetSeconds 60) }}
{{- end }}

{{- define "shipway.scales" -}}
{{- if ne .Values.autoscaling.type "none" }}true{{ end }}
{{- end }}

{{/* Stable pods that there are at least, and that there may be. */}}
{{- define "shipway.fewestReplicas" -}}
{{- ternary .Values.autoscaling.min .Values.replicaCount (eq (include "shipway.scales" .) "true") | int }}
{{- end }}

{{- define "shipway.mostReplicas" -}}
{{- ternary .Values.autoscaling.max .Values.replicaCount (eq (include "shipway.scales" .) "true") | int }}
{{- end }}

{{/* Set once: they must carry the largest share that the canary may get. */}}
{{- define "shipway.canaryReplicas" -}}
{{- $share := mul (include "shipway.mostReplicas" . | int) (.Values.maxCanaryShare | int) }}
{{- .Values.canary.replicaCount | default (div (add $share 99) 100) | int }}
{{- end }}

{{/* What --timeout must be: pods are replaced one after the other. */}}
{{- define "shipway.timeoutSeconds" -}}
{{- $others := sub (max 1 (include "shipway.mostReplicas" . | int)) 1 }}
{{- add (include "shipway.progressDeadlineSeconds" .) (mul $others (.Values.startup.budgetSeconds | int)) 60 }}
{{- end }}

{{- define "shipway.strategy" -}}
{{- if .Values.strategy }}
{{- toYaml .Values.strategy }}
{{- else }}
type: RollingUpdate
rollingUpdate:
  maxUnavailable: {{ ternary 1 0 (eq .Values.surge "never") }}
  maxSurge: {{ ternary 0 1 (eq .Values.surge "never") }}
{{- end }}
{{- end }}

{{- define "shipway.scheme" -}}
{{- ternary "https" "http" (ne .Values.tls.existingSecret "") }}
{{- end }}

{{/* While a canary is on, all traffic may come back to the stable pods at any moment. */}}
{{- define "shipway.behavior" -}}
{{- $behavior := deepCopy .Values.autoscaling.behavior }}
{{- if .Values.canary.enabled }}
{{- $_ := set $behavior "scaleDown" (dict "selectPolicy" "Disabled") }}
{{- end }}
{{- if $behavior }}{{ toYaml $behavior }}{{ end }}
{{- end }}
