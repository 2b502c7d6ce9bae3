{{- define "ottoscaler.selector" -}}
app.kubernetes.io/name: ottoscaler
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "ottoscaler.labels" -}}
{{ include "ottoscaler.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /*
The prefix of the names of cluster-scoped objects. A namespace has no dot, so that
two installations never share a name. Where it would become too long, a hash of the
whole stands for its end; the longest suffix has 15 characters, a name at most 63.
*/ -}}
{{- define "ottoscaler.global" -}}
{{- $name := printf "%s.%s" .Release.Namespace .Release.Name }}
{{- if le (len $name) 48 }}{{ $name }}{{ else }}{{ $name | trunc 31 | trimSuffix "." | trimSuffix "-" }}.{{ sha256sum $name | trunc 16 }}{{ end }}
{{- end }}

{{- /* The ConfigMaps that hold the checkpoints of logs (src/ottoscaler/src/logs/forward/shards), as a list. */ -}}
{{- define "ottoscaler.shards" -}}
[{{ range $n := until 16 }}{{ if $n }}, {{ end }}ottoscaler-log-checkpoints-{{ $n }}{{ end }}]
{{- end }}

{{- /* A value as text. Numbers of values files are floating-point numbers: whole ones have no exponent. */ -}}
{{- define "ottoscaler.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ toString . }}{{ end }}
{{- end }}

{{- /* A duration (60, 60s, 1m30s, 1.5s, 500ms) in whole milliseconds. */ -}}
{{- define "ottoscaler.milliseconds" -}}
{{- $text := include "ottoscaler.text" . }}
{{- if regexMatch "^[0-9]+$" $text }}{{ mul (atoi $text) 1000 }}
{{- else }}
{{- $ms := regexFind "[0-9]+ms$" $text }}
{{- $rest := trimSuffix $ms $text }}
{{- $hours := regexFind "[0-9]+h" $rest | trimSuffix "h" | atoi }}
{{- $minutes := regexFind "[0-9]+m" $rest | trimSuffix "m" | atoi }}
{{- $seconds := regexFind "[0-9.]+s$" $rest | trimSuffix "s" | default "0" | float64 }}
{{- add (mul $hours 3600000) (mul $minutes 60000) (round (mulf $seconds 1000) 0 | int64) (trimSuffix "ms" $ms | atoi) }}
{{- end }}
{{- end }}

{{- /* The name in the certificates of the replicas. */ -}}
{{- define "ottoscaler.replicasName" -}}
{{ .Release.Name }}-replicas.{{ .Release.Namespace }}.svc
{{- end }}

{{- /* The Secret with the certificate; empty without TLS. */ -}}
{{- define "ottoscaler.tlsSecret" -}}
{{- if .Values.tls.secret }}{{ .Values.tls.secret }}
{{- else if .Values.tls.certManager.enabled }}{{ .Release.Name }}-tls
{{- end }}
{{- end }}

{{- /* The settings that have values of their own, or that the rest of the chart rests on. */ -}}
{{- define "ottoscaler.settings" -}}
GRPC_PORT: "9090"
HEALTH_PORT: "9091"
METRICS_PORT: "9092"
OTTO_HANDLER_HOST: {{ .Values.handler | toJson }}
OTTO_AGENT_IMAGE: {{ .Values.worker.image | toJson }}
WORKER_IMAGE_PULL_POLICY: {{ .Values.worker.imagePullPolicy | toJson }}
WORKER_CPU_LIMIT: {{ include "ottoscaler.text" .Values.worker.cpuLimit | toJson }}
WORKER_MEMORY_LIMIT: {{ include "ottoscaler.text" .Values.worker.memoryLimit | toJson }}
LOG_LEVEL: {{ .Values.logLevel | toJson }}
LEASE_NAME: {{ .Values.lease.name | toJson }}
LEASE_DURATION: {{ include "ottoscaler.text" .Values.lease.duration | toJson }}
LEASE_RENEW_DEADLINE: {{ include "ottoscaler.text" .Values.lease.renewDeadline | toJson }}
LEASE_RETRY_PERIOD: {{ include "ottoscaler.text" .Values.lease.retryPeriod | toJson }}
HANDOVER_TIMEOUT: {{ include "ottoscaler.text" .Values.handoverTimeout | toJson }}
LOG_SPOOL_DIR: /var/spool/ottoscaler
LOG_SPOOL_SIZE: {{ include "ottoscaler.text" .Values.logSpool.size | toJson }}
CALLERS: {{ .Values.callers.mode | toJson }}
CALLERS_FILE: {{ ternary "/etc/ottoscaler/callers/callers" "" (eq .Values.callers.mode "static") | toJson }}
CALLER_AUDIENCE: {{ .Values.callers.audience | toJson }}
ALLOW_PLAINTEXT_TOKENS: {{ .Values.callers.allowPlaintextTokens | toString | toJson }}
REPLICAS_NAME: {{ include "ottoscaler.replicasName" . | toJson }}
OWN_SECRETS: {{ list .Values.callers.secret (include "ottoscaler.tlsSecret" .) | compact | join "," | toJson }}
TLS_CERT_FILE: {{ include "ottoscaler.tlsSecret" . | empty | ternary "" "/etc/ottoscaler/tls/tls.crt" | toJson }}
TLS_KEY_FILE: {{ include "ottoscaler.tlsSecret" . | empty | ternary "" "/etc/ottoscaler/tls/tls.key" | toJson }}
TLS_CA_FILE: {{ include "ottoscaler.tlsSecret" . | empty | ternary "" "/etc/ottoscaler/tls/ca.crt" | toJson }}
OTTO_HANDLER_TLS: {{ .Values.handlerTls.enabled | toString | toJson }}
OTTO_HANDLER_CA_FILE: {{ ternary "/etc/ottoscaler/handler-ca/ca.crt" "" (and .Values.handlerTls.enabled (ne .Values.handlerTls.caSecret "")) | toJson }}
OTTO_HANDLER_SERVER_NAME: {{ ternary .Values.handlerTls.serverName "" .Values.handlerTls.enabled | toJson }}
OTEL_EXPORTER_OTLP_ENDPOINT: {{ .Values.otlpEndpoint | toJson }}
{{- end }}

{{- /* What one value alone cannot show to be wrong. */ -}}
{{- define "ottoscaler.check" -}}
{{- if contains "." .Release.Name }}
{{- fail (printf "release name %q: takes no dot, for the Service has this name" .Release.Name) }}
{{- end }}
{{- $duration := include "ottoscaler.milliseconds" .Values.lease.duration | atoi }}
{{- $deadline := include "ottoscaler.milliseconds" .Values.lease.renewDeadline | atoi }}
{{- $retry := include "ottoscaler.milliseconds" .Values.lease.retryPeriod | atoi }}
{{- if or (eq $duration 0) (ne (mod $duration 1000) 0) (gt $duration 3600000) }}
{{- fail (printf "lease.duration: %v is not whole seconds, from 1 to 3600" .Values.lease.duration) }}
{{- end }}
{{- if ge $deadline $duration }}
{{- fail (printf "lease.renewDeadline: %v is not less than lease.duration (%v)" .Values.lease.renewDeadline .Values.lease.duration) }}
{{- end }}
{{- if or (lt $retry 100) (gt (mul 2 $retry) $deadline) }}
{{- fail (printf "lease.retryPeriod: %v is not from 100ms to half of lease.renewDeadline (%v)" .Values.lease.retryPeriod .Values.lease.renewDeadline) }}
{{- end }}
{{- if and (eq .Values.callers.mode "static") (not .Values.callers.secret) }}
{{- fail "callers.secret: is needed with callers.mode static: the Secret whose key `callers` is the file (docs/callers.md)" }}
{{- end }}
{{- if and (ne .Values.callers.mode "none") (not .Values.callers.allowPlaintextTokens) (not (include "ottoscaler.tlsSecret" .)) }}
{{- fail (printf "callers.mode: %s takes tokens, which others may read without TLS; set tls.secret, or take the risk with callers.allowPlaintextTokens=true" .Values.callers.mode) }}
{{- end }}
{{- if and .Values.tls.certManager.enabled (not .Values.tls.certManager.issuer.name) }}
{{- fail "tls.certManager.issuer.name: is needed with tls.certManager.enabled: the issuer that signs the certificate" }}
{{- end }}
{{- if and .Values.handlerTls.enabled (eq .Values.handler "none") }}
{{- fail "handlerTls.enabled: there is no otto-handler: handler is none" }}
{{- end }}
{{- if and (not .Values.handlerTls.enabled) (or .Values.handlerTls.caSecret .Values.handlerTls.serverName) }}
{{- fail "handlerTls: has no effect without handlerTls.enabled" }}
{{- end }}
{{- $marker := lookup "rbac.authorization.k8s.io/v1" "Role" .Release.Namespace "ottoscaler" }}
{{- if $marker }}
{{- $other := dig "metadata" "annotations" "meta.helm.sh/release-name" "" $marker }}
{{- if and $other (ne $other .Release.Name) }}
{{- fail (printf "namespace %q has the release %q of Ottoscaler already. Releases share the WorkerTasks and pods of their namespace: upgrade that one, or install into another namespace" .Release.Namespace $other) }}
{{- end }}
{{- end }}
{{- end }}
