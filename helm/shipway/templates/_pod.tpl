{{/*
The pod, of the stable version and of a canary alike. Arguments: root, track, model (name, version, sha256,
handlerConfig) and image. Everything that defines what a pod does stands here: a ReplicaSet is a model version.
*/}}
{{- define "shipway.pod" -}}
{{- $values := .root.Values }}
{{- $stable := eq .track "stable" }}
metadata:
  labels:
    # Neither the chart's version nor the image's: a pod is replaced when what it does changes.
    {{- $selector := fromYaml (include "shipway.selectorLabels" .root) }}
    {{- toYaml (merge (dict "shipway.dev/track" .track) $selector $values.podLabels $values.commonLabels) | nindent 4 }}
  annotations:
    {{- $identity := dict "shipway.dev/model" .model.name "shipway.dev/version" (.model.version | int | toString) "shipway.dev/digest" .model.sha256 }}
    {{- toYaml (merge $identity $values.podAnnotations) | nindent 4 }}
spec:
  serviceAccountName: {{ include "shipway.serviceAccountName" .root }}
  automountServiceAccountToken: false
  # Variables of a Service whose name begins with "shipway" would be read as settings.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ include "shipway.gracePeriodSeconds" .root }}
  securityContext:
    {{- toYaml $values.podSecurityContext | nindent 4 }}
  {{- with $values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with include "shipway.placement" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  initContainers:
    {{- include "shipway.fetch" (dict "root" .root "model" .model "image" .image "name" "fetch") | trim | nindent 4 }}
    {{- with $values.initContainers }}
    {{- tpl (toYaml .) $.root | nindent 4 }}
    {{- end }}
  containers:
    - name: node
      image: {{ include "shipway.image" . }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      args: [node]
      env:
        {{- include "shipway.environment" .root | trim | nindent 8 }}
        {{- include "shipway.nodeEnvironment" . | trim | nindent 8 }}
        {{- with $values.extraEnv }}
        {{- tpl (toYaml .) $.root | nindent 8 }}
        {{- end }}
      ports:
        - {name: http, containerPort: 8080}
        - {name: peer, containerPort: 8081}
        - {name: metrics, containerPort: 8082}
      startupProbe:
        httpGet: {path: /readyz, port: metrics}
        periodSeconds: 2
        timeoutSeconds: 2
        failureThreshold: {{ div (add $values.startup.budgetSeconds 1) 2 }}
      readinessProbe:
        httpGet: {path: /readyz, port: metrics}
        periodSeconds: 2
        timeoutSeconds: 2
        failureThreshold: 2
      livenessProbe:
        httpGet: {path: /livez, port: metrics}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      {{- if and $stable (gt ($values.drain.preStopSeconds | int) 0) }}
      # A canary has none: its traffic falls back at once, whatever the weights still say.
      lifecycle:
        preStop:
          sleep: {seconds: {{ $values.drain.preStopSeconds }}}
      {{- end }}
      {{- with include "shipway.resources" .root | trim }}
      {{- . | nindent 6 }}
      {{- end }}
      securityContext:
        {{- toYaml $values.securityContext | nindent 8 }}
      # Where a node that ends writes no reason, its last log lines are it.
      terminationMessagePolicy: FallbackToLogsOnError
      volumeMounts:
        {{- include "shipway.mounts" (dict "root" .root "readOnly" true) | trim | nindent 8 }}
        {{- if $stable }}
        - {name: routing, mountPath: /etc/shipway/routing/release, readOnly: true}
        - {name: rollout, mountPath: /etc/shipway/routing/rollout, readOnly: true}
        {{- end }}
        {{- if $values.tls.existingSecret }}
        - {name: tls, mountPath: /etc/shipway/tls, readOnly: true}
        {{- end }}
        {{- if $values.auth.apiKeys.existingSecret }}
        - {name: keys, mountPath: /etc/shipway/keys, readOnly: true}
        {{- end }}
        {{- if $values.auth.jwt.issuer }}
        - {name: jwks, mountPath: /etc/shipway/jwks, readOnly: true}
        {{- end }}
        {{- if $values.shm.sizeLimit }}
        - {name: shm, mountPath: /dev/shm}
        {{- end }}
        {{- with $values.extraVolumeMounts }}
        {{- tpl (toYaml .) $.root | nindent 8 }}
        {{- end }}
    {{- with $values.sidecars }}
    {{- tpl (toYaml .) $.root | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "shipway.volumes" .root | trim | nindent 4 }}
    {{- if $stable }}
    - name: routing
      configMap: {name: {{ include "shipway.fullname" .root }}-routing}
    - name: rollout
      # Written by `shipway rollout`, while it is at work.
      configMap: {name: {{ include "shipway.fullname" .root }}-rollout, optional: true}
    {{- end }}
    {{- with $values.tls.existingSecret }}
    - name: tls
      secret: {secretName: {{ . }}, defaultMode: 0440}
    {{- end }}
    {{- with $values.auth.apiKeys.existingSecret }}
    - name: keys
      secret: {secretName: {{ . }}, defaultMode: 0440}
    {{- end }}
    {{- if $values.auth.jwt.issuer }}
    - name: jwks
      configMap: {name: {{ include "shipway.fullname" .root }}-jwks}
    {{- end }}
    {{- with $values.shm.sizeLimit }}
    - name: shm
      emptyDir: {medium: Memory, sizeLimit: {{ . }}}
    {{- end }}
    {{- with $values.extraVolumes }}
    {{- tpl (toYaml .) $.root | nindent 4 }}
    {{- end }}
{{- end }}

{{/* On which nodes, and beside whom. */}}
{{- define "shipway.placement" -}}
{{- $values := .root.Values }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- if and $values.gpu.enabled $values.gpu.runtimeClassName }}
runtimeClassName: {{ $values.gpu.runtimeClassName }}
{{- end }}
{{- with merge (dict) $values.nodeSelector (ternary $values.gpu.nodeSelector (dict) $values.gpu.enabled) }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with concat $values.tolerations (ternary $values.gpu.tolerations (list) $values.gpu.enabled) }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if $values.topologySpreadConstraints }}
{{- $selector := dict "matchLabels" (merge (dict "shipway.dev/track" .track) (fromYaml (include "shipway.selectorLabels" .root))) }}
{{- $constraints := list }}
{{- range $values.topologySpreadConstraints }}
{{- $constraints = append $constraints (merge (deepCopy .) (dict "labelSelector" $selector)) }}
{{- end }}
topologySpreadConstraints:
  {{- toYaml $constraints | nindent 2 }}
{{- end }}
{{- if and $values.gpu.enabled $values.gpu.dra.enabled }}
resourceClaims:
  - name: gpu
    resourceClaimTemplateName: {{ include "shipway.fullname" .root }}-gpu
{{- end }}
{{- end }}

{{- define "shipway.resources" -}}
{{- $resources := deepCopy .Values.resources }}
{{- if .Values.gpu.enabled }}
{{- if .Values.gpu.dra.enabled }}
{{- $_ := set $resources "claims" (list (dict "name" "gpu")) }}
{{- else }}
{{- $limits := merge (dict .Values.gpu.resourceName (.Values.gpu.count | int)) ($resources.limits | default dict) }}
{{- $_ := set $resources "limits" $limits }}
{{- end }}
{{- end }}
{{- with $resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The container that puts a verified archive into the cache; it says in one sentence why it cannot. */}}
{{- define "shipway.fetch" -}}
{{- $values := .root.Values }}
{{- $source := $values.source }}
- name: {{ .name }}
  image: {{ include "shipway.image" . }}
  imagePullPolicy: {{ $values.image.pullPolicy }}
  args:
    - fetch
    {{- if has $source.type (list "pvc" "image") }}
    - --offline
    {{- else if eq $source.type "http" }}
    - --from
    - {{ $source.http.url }}
    {{- end }}
    - {{ .model.name }}
    - {{ .model.version | int | quote }}
    - {{ .model.sha256 }}
  env:
    {{- include "shipway.environment" .root | trim | nindent 4 }}
    {{- if eq $source.type "mlflow" }}
    - name: SHIPWAY_MLFLOW_URI
      value: {{ $source.mlflow.trackingUri | quote }}
    {{- end }}
    {{- if include "shipway.authority" .root }}
    # What requests, and what Python's own client reads.
    - {name: REQUESTS_CA_BUNDLE, value: /etc/shipway/ca/ca.crt}
    - {name: SSL_CERT_FILE, value: /etc/shipway/ca/ca.crt}
    {{- end }}
  {{- if and (eq $source.type "mlflow") $source.mlflow.existingSecret }}
  envFrom:
    - secretRef: {name: {{ $source.mlflow.existingSecret }}}
  {{- end }}
  {{- with $values.fetch.resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- toYaml $values.securityContext | nindent 4 }}
  terminationMessagePolicy: FallbackToLogsOnError
  volumeMounts:
    {{- include "shipway.mounts" (dict "root" .root "readOnly" (has $source.type (list "pvc" "image"))) | trim | nindent 4 }}
    {{- if include "shipway.authority" .root }}
    - {name: ca, mountPath: /etc/shipway/ca, readOnly: true}
    {{- end }}
{{- end }}

{{/* The ConfigMap with the authority of whoever has the archives. */}}
{{- define "shipway.authority" -}}
{{- with .Values.source }}
{{- if eq .type "mlflow" }}{{ .mlflow.caConfigMap }}{{ else if eq .type "http" }}{{ .http.caConfigMap }}{{ end }}
{{- end }}
{{- end }}

{{/* Of both containers. */}}
{{- define "shipway.environment" -}}
- name: SHIPWAY_STATE_DIR
  value: /var/lib/shipway
- name: SHIPWAY_RUN_DIR
  value: /run/shipway
- name: SHIPWAY_ARCHIVES_DIR
  value: /var/cache/shipway
- name: SHIPWAY_TRUSTED_KEYS
  value: |
    {{- range .Values.trust.publicKeys }}
    {{- trim . | nindent 4 }}
    {{- end }}
{{- end }}

{{- define "shipway.nodeEnvironment" -}}
{{- $values := .root.Values }}
{{- $serves := dict "model" .model.name "version" (.model.version | int) "digest" .model.sha256 "explain" $values.explain }}
{{- with .model.handlerConfig }}
{{- $handler := dict }}
{{- range $key, $value := . }}{{ $_ := set $handler $key ($value | int) }}{{ end }}
{{- $_ := set $serves "handler" $handler }}
{{- end }}
- name: SHIPWAY_SERVES
  value: {{ toJson $serves | quote }}
- name: SHIPWAY_HOST
  value: 0.0.0.0
- name: SHIPWAY_HTTP_PORT
  value: "8080"
- name: SHIPWAY_PEER_PORT
  value: "8081"
- name: SHIPWAY_METRICS_HOST
  value: 0.0.0.0
- name: SHIPWAY_METRICS_PORT
  value: "8082"
- name: SHIPWAY_REQUEST_TIMEOUT_SECONDS
  value: {{ $values.drain.requestTimeoutSeconds | int | quote }}
- name: SHIPWAY_DRAIN_SECONDS
  value: {{ $values.drain.requestTimeoutSeconds | int | quote }}
- name: SHIPWAY_MAX_BODY_BYTES
  value: {{ $values.node.maxBodyBytes | int | quote }}
- name: SHIPWAY_JVM_HEAP_MIB
  value: {{ $values.node.jvmHeapMiB | int | quote }}
{{- if $values.insecure }}
- name: SHIPWAY_INSECURE
  value: "true"
{{- end }}
{{- if $values.tls.existingSecret }}
- name: SHIPWAY_TLS_CERTIFICATE
  value: /etc/shipway/tls/tls.crt
- name: SHIPWAY_TLS_KEY
  value: /etc/shipway/tls/tls.key
{{- end }}
{{- if $values.auth.apiKeys.existingSecret }}
- name: SHIPWAY_API_KEYS
  value: /etc/shipway/keys/api_keys.json
{{- end }}
{{- with $values.auth.jwt.issuer }}
- name: SHIPWAY_JWT_ISSUER
  value: {{ . | quote }}
- name: SHIPWAY_JWT_AUDIENCE
  value: {{ $values.auth.jwt.audience | quote }}
- name: SHIPWAY_JWT_JWKS
  value: /etc/shipway/jwks/jwks.json
{{- end }}
{{- if eq .track "stable" }}
- name: SHIPWAY_ROUTING_DIR
  value: /etc/shipway/routing
{{- end }}
{{- end }}

{{/* What a read-only root file system leaves to write to. Arguments: root, readOnly: of the archives. */}}
{{- define "shipway.mounts" -}}
{{- $source := .root.Values.source }}
- {name: state, mountPath: /var/lib/shipway}
- {name: run, mountPath: /run/shipway}
- {name: tmp, mountPath: /tmp}
{{- $subPath := ternary $source.pvc.subPath "" (eq $source.type "pvc") }}
- {name: archives, mountPath: /var/cache/shipway{{ if .readOnly }}, readOnly: true{{ end }}{{ with $subPath }}, subPath: {{ . }}{{ end }}}
{{- end }}

{{- define "shipway.volumes" -}}
{{- $source := .Values.source }}
- {name: state, emptyDir: {}}
- {name: run, emptyDir: {medium: Memory}}
- {name: tmp, emptyDir: {}}
- name: archives
  {{- if eq $source.type "pvc" }}
  persistentVolumeClaim: {claimName: {{ $source.pvc.claimName }}, readOnly: true}
  {{- else if eq $source.type "image" }}
  image: {reference: {{ $source.image.reference | quote }}, pullPolicy: {{ $source.image.pullPolicy }}}
  {{- else if eq .Values.cache.type "pvc" }}
  persistentVolumeClaim: {claimName: {{ .Values.cache.existingClaim | default (printf "%s-cache" (include "shipway.fullname" .)) }}}
  {{- else }}
  emptyDir: { {{- with .Values.cache.sizeLimit }}sizeLimit: {{ . }}{{ end }}}
  {{- end }}
{{- with include "shipway.authority" . }}
- name: ca
  configMap: {name: {{ . }}}
{{- end }}
{{- end }}
