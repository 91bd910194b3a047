{{/*
The name of every object, whatever the release is called. A cluster has one switchboard: its CRDs, and the bindings that
they hold, belong to the whole cluster. Two operators would be two writers of the same claims, and since all names are
fixed, Helm refuses the second release.
*/}}
{{- define "switchboard.name" -}}
switchboard
{{- end }}

{{/*
The labels by which a Service finds its pods: they can never change after the first release.
*/}}
{{- define "switchboard.selectorLabels" -}}
app.kubernetes.io/name: {{ include "switchboard.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/*
The labels of every object.
*/}}
{{- define "switchboard.labels" -}}
{{ include "switchboard.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: switchboard
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/*
The user as whom the operator calls the API server: its service account. The policies let this user write what nobody
else may.
*/}}
{{- define "switchboard.username" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "switchboard.name" . }}
{{- end }}

{{/*
A CustomResourceDefinition from files/crds, which are the generated ones of the repository, with what only a release can
know. Called with (dict "root" $ "file" "conversations.yaml").
*/}}
{{- define "switchboard.crd" -}}
{{- $text := .root.Files.Get (printf "files/crds/%s" .file) -}}
{{- if not $text -}}
{{- fail (printf "the chart lacks files/crds/%s: files/crds is a symbolic link to the repository's crds/, which was lost in a copy" .file) -}}
{{- end -}}
{{- $crd := fromYaml $text -}}
{{- $ours := dict "labels" (include "switchboard.labels" .root | fromYaml) -}}
{{- if .root.Values.crds.keep -}}
{{- $_ := set $ours "annotations" (dict "helm.sh/resource-policy" "keep") -}}
{{- end -}}
{{- toYaml (mergeOverwrite $crd (dict "metadata" $ours)) -}}
{{- end }}
