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

{{- define "imds-oidc-proxy.cniName" -}}
{{ with .Values.fullnameOverride }}{{ . }}-cni{{ else }}imds-oidc-proxy-cni{{ end }}
{{- end }}

{{- define "imds-oidc-proxy.cniSelector" -}}
app.kubernetes.io/name: imds-oidc-proxy-cni
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "imds-oidc-proxy.cniLabels" -}}
{{ include "imds-oidc-proxy.cniSelector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* The argument is a list: the chart's root, and an image. A digest takes precedence over a tag. */ -}}
{{- define "imds-oidc-proxy.image" -}}
{{- $root := index . 0 }}{{ $image := index . 1 -}}
{{ required (printf "images.registry is required: this chart names no registry with the images of imds-oidc-proxy %s; build and push them once, in a clone of its repository: make release SNAPSHOT=1 && make push REGISTRY=registry.example.test/team; then add --set images.registry=registry.example.test/team" $root.Chart.AppVersion) $root.Values.images.registry }}/{{ $image.repository }}
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

{{- /* Namespaces that the webhook is never called for: the release's own, whose pods it would have to
admit itself, and kube-system, which the cluster needs to start. A list in the values adds to them. */ -}}
{{- define "imds-oidc-proxy.excludedNamespaces" -}}
{{ concat (list .Release.Namespace "kube-system") (default list .Values.webhook.excludedNamespaces) | uniq | join "," }}
{{- end }}

{{- /* GOMEMLIMIT for a memory limit: three quarters, so that a burst causes more garbage collection
before it gets the container killed. Nothing for a limit that is not a number of bytes with a unit. */ -}}
{{- define "imds-oidc-proxy.memoryLimit" -}}
{{- $units := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 -}}
{{- $unit := regexFind "[kKMG]i?$" . -}}
{{- $number := trimSuffix $unit . -}}
{{- if and (regexMatch "^[0-9]+([.][0-9]+)?$" $number) (hasKey $units $unit) -}}
{{- $mebibytes := divf (mulf (float64 $number) (get $units $unit) 3) 4194304 | floor | int64 -}}
{{- if gt $mebibytes 0 }}{{ $mebibytes }}MiB{{ end -}}
{{- end -}}
{{- end }}
