{{- /* Names and labels of the objects, and images. */ -}}
{{- define "imds-oidc-proxy.name" -}}
{{ default "imds-oidc-proxy-webhook" .Values.fullnameOverride }}
{{- end }}

{{- define "imds-oidc-proxy.secret" -}}
{{ default (printf "%s-cert" (include "imds-oidc-proxy.name" .)) .Values.certificates.secretName }}
{{- end }}

{{- define "imds-oidc-proxy.selector" -}}
app.kubernetes.io/name: imds-oidc-proxy-webhook
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "imds-oidc-proxy.labels" -}}
{{ include "imds-oidc-proxy.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* The argument is a list: the chart's root, and an image. A digest takes precedence over a tag. */ -}}
{{- define "imds-oidc-proxy.image" -}}
{{- $root := index . 0 }}{{ $image := index . 1 -}}
{{ $root.Values.images.registry }}/{{ $image.repository }}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ default $root.Chart.AppVersion $image.tag }}{{ end }}
{{- end }}

{{- /* The argument is a list: the labels of the pods, and the key of the topology. */ -}}
{{- define "imds-oidc-proxy.spread" -}}
- maxSkew: 1
  topologyKey: {{ index . 1 }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- index . 0 | nindent 6 }}
{{- end }}
