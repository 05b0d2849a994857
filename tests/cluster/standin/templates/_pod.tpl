{{- define "pod" -}}
{{- $serves := dict "model" .root.Values.model.name "version" (int .model.version) "digest" .model.sha256 -}}
metadata:
  labels: {app.kubernetes.io/name: shipway, app.kubernetes.io/instance: {{ .root.Release.Name }}, shipway.dev/track: {{ .track }}}
  annotations:
    shipway.dev/model: {{ .root.Values.model.name }}
    shipway.dev/version: {{ .model.version | int | quote }}
    shipway.dev/digest: {{ .model.sha256 | quote }}
spec:
  enableServiceLinks: false
  terminationGracePeriodSeconds: 5
  initContainers:
    - name: fetch
      image: {{ .root.Values.image }}
      imagePullPolicy: Never
      command: [python3, /standin/node.py, fetch]
      env: [{name: SHIPWAY_SERVES, value: {{ $serves | toJson | quote }}}]
      volumeMounts: [{name: standin, mountPath: /standin}]
  containers:
    - name: node
      image: {{ .root.Values.image }}
      imagePullPolicy: Never
      command: [python3, /standin/node.py]
      env:
        - {name: SHIPWAY_SERVES, value: {{ $serves | toJson | quote }}}
        {{- if eq .track "stable" }}
        - {name: SHIPWAY_ROUTING_DIR, value: /etc/shipway/routing}
        {{- end }}
      startupProbe: {httpGet: {path: /readyz, port: 8082}, periodSeconds: 1, failureThreshold: 15}
      readinessProbe: {httpGet: {path: /readyz, port: 8082}, periodSeconds: 1, failureThreshold: 1}
      volumeMounts:
        - {name: standin, mountPath: /standin}
        {{- if eq .track "stable" }}
        - {name: release, mountPath: /etc/shipway/routing/release}
        - {name: rollout, mountPath: /etc/shipway/routing/rollout}
        {{- end }}
  volumes:
    - {name: standin, configMap: {name: {{ .root.Release.Name }}-shipway-standin}}
    {{- if eq .track "stable" }}
    - {name: release, configMap: {name: {{ .root.Release.Name }}-shipway-routing}}
    - {name: rollout, configMap: {name: {{ .root.Release.Name }}-shipway-rollout, optional: true}}
    {{- end }}
{{- end }}

{{- define "deployment" -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .root.Release.Name }}-shipway{{ if eq .track "canary" }}-canary{{ end }}
  labels: {app.kubernetes.io/name: shipway, app.kubernetes.io/instance: {{ .root.Release.Name }}, shipway.dev/track: {{ .track }}}
spec:
  replicas: {{ .replicas }}
  progressDeadlineSeconds: {{ .root.Values.progressDeadlineSeconds }}
  strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  selector:
    matchLabels: {app.kubernetes.io/name: shipway, app.kubernetes.io/instance: {{ .root.Release.Name }}, shipway.dev/track: {{ .track }}}
  template:
    {{- include "pod" . | nindent 4 }}
{{- end }}
