{{/* Name of everything: starts with a letter whatever the release is called, at most 46 characters. */}}
{{- define "alcor.name" -}}
{{- $name := .Release.Name -}}
{{- if not (hasPrefix "alcor" $name) }}{{ $name = printf "alcor-%s" $name }}{{ end -}}
{{- $name = replace "." "-" $name -}}
{{- if or (gt (len $name) 46) (contains "." .Release.Name) -}}
{{- printf "%s-%s" ($name | trunc 39 | trimSuffix "-") (sha256sum .Release.Name | trunc 6) -}}
{{- else }}{{ $name }}{{ end -}}
{{- end }}

{{/* Labels that select pods: call with (list . "component"). */}}
{{- define "alcor.selector" -}}
app.kubernetes.io/name: alcor-mesh
app.kubernetes.io/instance: {{ (index . 0).Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 | quote }}
{{- end }}

{{- define "alcor.labels" -}}
{{ include "alcor.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version | quote }}
{{- end }}

{{/* metadata of an object: call with (list . "component" "-suffix"). */}}
{{- define "alcor.metadata" -}}
name: {{ include "alcor.name" (index . 0) }}{{ index . 2 }}
namespace: {{ (index . 0).Release.Namespace | quote }}
labels:
  {{- include "alcor.labels" . | nindent 2 }}
{{- end }}

{{- define "alcor.image" -}}
{{- $image := .Values.image -}}
image: {{ if $image.digest }}{{ printf "%s@%s" $image.repository $image.digest | quote }}{{ else }}{{ printf "%s:%s" $image.repository (default .Chart.AppVersion $image.tag) | quote }}{{ end }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{/* What every pod has: no Kubernetes credentials, for no part talks to Kubernetes. */}}
{{- define "alcor.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "alcor.unprivileged" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  capabilities: {drop: [ALL]}
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "alcor.natsUrl" -}}
{{- if eq .Values.topology "single" -}}
nats://127.0.0.1:4222
{{- else if eq .Values.nats.mode "external" -}}
{{ .Values.nats.url }}
{{- else -}}
{{ ternary "tls" "nats" .Values.nats.tls.enabled }}://{{ include "alcor.name" . }}-nats.{{ .Release.Namespace }}.svc:4222
{{- end -}}
{{- end }}

{{/* Where a client of NATS finds its CA and its credentials: call with (list . secret hostPath). */}}
{{- define "alcor.natsEnv" -}}
{{- $root := index . 0 -}}
{{- if and $root.Values.nats.tls.enabled (ne $root.Values.topology "single") }}
- {name: SSL_CERT_FILE, value: /etc/alcor/nats-ca/ca.crt}
{{- end }}
{{- if or (index . 1) (index . 2) }}
- {name: ALCOR_NATS_CREDS, value: /etc/alcor/nats-creds/nats.creds}
{{- end }}
{{- end }}

{{- define "alcor.natsMounts" -}}
{{- $root := index . 0 -}}
{{- if and $root.Values.nats.tls.enabled (ne $root.Values.topology "single") }}
- {name: nats-ca, mountPath: /etc/alcor/nats-ca, readOnly: true}
{{- end }}
{{- if index . 2 }}
- {name: nats-creds, mountPath: /etc/alcor/nats-creds/nats.creds, readOnly: true}
{{- else if index . 1 }}
- {name: nats-creds, mountPath: /etc/alcor/nats-creds, readOnly: true}
{{- end }}
{{- end }}

{{- define "alcor.natsVolumes" -}}
{{- $root := index . 0 -}}
{{- if and $root.Values.nats.tls.enabled (ne $root.Values.topology "single") }}
- name: nats-ca
  secret: {secretName: {{ $root.Values.nats.tls.secret | quote }}, items: [{key: ca.crt, path: ca.crt}]}
{{- end }}
{{- if index . 2 }}
- name: nats-creds
  hostPath: {path: {{ index . 2 | quote }}, type: File}
{{- else if index . 1 }}
- name: nats-creds
  secret: {secretName: {{ index . 1 | quote }}, items: [{key: nats.creds, path: nats.creds}]}
{{- end }}
{{- end }}

{{/* ALCOR_STORE, never in clear in a manifest. */}}
{{- define "alcor.storeEnv" -}}
{{- $store := .Values.store -}}
{{- if eq $store.mode "sqlite" }}
- {name: ALCOR_STORE, value: "sqlite:////var/lib/alcor/alcor.db"}
{{- else if eq $store.mode "external" }}
- name: ALCOR_STORE
  valueFrom: {secretKeyRef: {name: {{ $store.secret.name | quote }}, key: {{ $store.secret.key | quote }}}}
{{- else }}
{{- $operator := $store.operator }}
{{- range $key := list "username" "password" }}
- name: CASSANDRA_{{ upper $key }}
  valueFrom: {secretKeyRef: {name: {{ printf "%s-superuser" $operator.clusterName | quote }}, key: {{ $key }}}}
{{- end }}
- name: ALCOR_STORE
  value: {{ printf "cassandra://$(CASSANDRA_USERNAME):$(CASSANDRA_PASSWORD)@%s-%s-service.%s.svc:9042/%s?dc=%s&replication=%d" $operator.clusterName $operator.datacenter .Release.Namespace $operator.keyspace $operator.datacenter (min 3 $operator.size) | quote }}
{{- end }}
{{- end }}

{{/* The agent as a container: call with (list . extra environment, YAML text). */}}
{{- define "alcor.agentContainer" -}}
{{- $agent := .Values.agent -}}
name: agent
{{ include "alcor.image" . }}
# Kubernetes lets only a privileged container share the mounts under /run/netns with its node, without which namespaces
# and their traffic would end with the pod. setpriv takes back every capability that the process does not need.
command: [setpriv, --bounding-set, {{ printf "-all,+%s" (join ",+" $agent.capabilities) | quote }}, --, alcor, agent]
securityContext:
  privileged: true
  runAsUser: 0
  readOnlyRootFilesystem: true
envFrom: [{configMapRef: {name: {{ include "alcor.name" . }}-settings}}]
env:
  - {name: ALCOR_HOST, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
  - {name: ALCOR_VTEP, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
  - {name: ALCOR_STATE, value: {{ $agent.statePath | quote }}}
  - {name: ALCOR_METRICS_HOST, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
  - {name: ALCOR_METRICS_PORT, value: {{ int $agent.metricsPort | quote }}}
  {{- include "alcor.natsEnv" (list . .Values.nats.auth.agentSecret .Values.nats.auth.agentPath) | indent 2 }}
  {{- with $agent.extraEnv }}{{ toYaml . | nindent 2 }}{{ end }}
{{- with $agent.metricsPort }}
ports: [{name: metrics, containerPort: {{ int . }}, hostPort: {{ int . }}}]
{{- end }}
resources: {{- toYaml $agent.resources | nindent 2 }}
terminationMessagePolicy: FallbackToLogsOnError
volumeMounts:
  - {name: state, mountPath: {{ $agent.statePath | quote }}}
  - {name: netns, mountPath: /run/netns, mountPropagation: Bidirectional}
  - {name: machine-id, mountPath: /etc/machine-id, readOnly: true}
  {{- include "alcor.natsMounts" (list . .Values.nats.auth.agentSecret .Values.nats.auth.agentPath) | indent 2 }}
{{- end }}

{{- define "alcor.agentVolumes" -}}
- name: state
  hostPath: {path: {{ .Values.agent.statePath | quote }}, type: DirectoryOrCreate}
- name: netns
  hostPath: {path: {{ .Values.agent.netnsPath | quote }}, type: DirectoryOrCreate}
- name: machine-id
  hostPath: {path: /etc/machine-id, type: File}
{{- include "alcor.natsVolumes" (list . .Values.nats.auth.agentSecret .Values.nats.auth.agentPath) }}
{{- end }}

{{- define "alcor.migrateContainer" -}}
name: migrate
{{ include "alcor.image" . }}
command: [alcor, store, init]
{{ include "alcor.unprivileged" . }}
env: {{- include "alcor.storeEnv" . | indent 2 }}
resources: {requests: {cpu: 100m, memory: 128Mi}, limits: {memory: 512Mi}}
{{- end }}

{{/* A tls block of nats.conf: call with what to add to it. */}}
{{- define "alcor.natsTls" -}}
tls { cert_file: "/etc/nats/tls/tls.crt", key_file: "/etc/nats/tls/tls.key", ca_file: "/etc/nats/tls/ca.crt"{{ . }} }
{{- end }}
