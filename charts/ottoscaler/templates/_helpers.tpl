{{- define "ottoscaler.selector" -}}
app.kubernetes.io/name: ottoscaler
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "ottoscaler.labels" -}}
{{ include "ottoscaler.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* Cluster-wide objects carry the namespace, so that installs do not meet. */ -}}
{{- define "ottoscaler.global" -}}
{{ .Release.Namespace }}-{{ .Release.Name }}
{{- end }}
