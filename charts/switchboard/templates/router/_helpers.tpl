{{/*
The name of the router's objects.
*/}}
{{- define "switchboard.router.name" -}}
{{ include "switchboard.name" . }}-router
{{- end }}

{{/*
The labels by which the router's objects select its pods. The name differs from the operator's, because the operator's Services would
otherwise select the router's pods, too. They must never change, because a Deployment's selector is immutable.
*/}}
{{- define "switchboard.router.selectorLabels" -}}
app.kubernetes.io/name: {{ include "switchboard.router.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/*
The labels of every object of the router.
*/}}
{{- define "switchboard.router.labels" -}}
{{ include "switchboard.router.selectorLabels" . }}
{{ include "switchboard.releaseLabels" . }}
{{- end }}

{{/*
The smallest number of replicas that run.
*/}}
{{- define "switchboard.router.minReplicas" -}}
{{ ternary .Values.router.autoscaling.minReplicas .Values.router.replicas .Values.router.autoscaling.enabled }}
{{- end }}

{{/*
The sources, as the router reads them: the name, type and public URL of each, without the name of its Secret.
*/}}
{{- define "switchboard.router.sources" -}}
{{- $sources := dict -}}
{{- range $name, $source := .Values.router.sources -}}
{{- $_ := set $sources $name (pick $source "type" "publicURL") -}}
{{- end -}}
{{- toYaml $sources -}}
{{- end }}

{{/*
The host at which providers reach the router, as far as the values say it.
*/}}
{{- define "switchboard.router.host" -}}
{{- with .Values.router -}}
{{- if .ingress.enabled -}}
{{ .ingress.host }}
{{- else if and .httpRoute.enabled .httpRoute.hostnames -}}
{{ first .httpRoute.hostnames }}
{{- end -}}
{{- end -}}
{{- end }}

{{/*
Fails if the values of the router contradict each other.
*/}}
{{- define "switchboard.router.validate" -}}
{{- $root := . -}}
{{- with .Values.router -}}
{{- if not .sources -}}
{{- fail "router.sources must have at least one source when router.enabled is true, such as router.sources.gateway={type: CloudEvents, secretName: gateway}" -}}
{{- end -}}
{{- range $name, $source := .sources -}}
{{- if and (eq $source.type "Twilio") (not $source.publicURL) -}}
{{- fail (printf "router.sources.%s.publicURL must be set for a source of type Twilio: to the URL that is set at Twilio, such as https://inbound.example.com/v1/sources/%s" $name $name) -}}
{{- end -}}
{{- if and (ne $source.type "Twilio") $source.publicURL -}}
{{- fail (printf "router.sources.%s.publicURL is only for a source of type Twilio, whose signature covers the URL: remove it" $name) -}}
{{- end -}}
{{- if and (eq $source.type "Meta") (not $root.Values.router.deadLetterSink.uri) (not $root.Values.router.deadLetterSink.service) -}}
{{- fail (printf "router.deadLetterSink must be set for a source of type Meta, such as router.sources.%s: Meta sends batches, and repeats a whole batch for days if one of its messages is not accepted" $name) -}}
{{- end -}}
{{- end -}}
{{- include "switchboard.validateSink" (dict "root" $root "name" "router.deadLetterSink" "sink" .deadLetterSink) -}}
{{- include "switchboard.validateSinkCA" (dict "name" "router.sinkCA" "sinkCA" .sinkCA) -}}
{{- if eq (int .port) (int $root.Values.health.port) -}}
{{- fail (printf "router.port and health.port must differ: both are %d" (int .port)) -}}
{{- end -}}
{{- if and .ingress.enabled (not .ingress.host) -}}
{{- fail "router.ingress.host must be set when router.ingress.enabled is true: to the host at which providers call the router" -}}
{{- end -}}
{{- if and .httpRoute.enabled (not .httpRoute.parentRefs) -}}
{{- fail "router.httpRoute.parentRefs must name a Gateway when router.httpRoute.enabled is true, such as [{name: public, namespace: gateways}]" -}}
{{- end -}}
{{- if .autoscaling.enabled -}}
{{- if gt (int .autoscaling.minReplicas) (int .autoscaling.maxReplicas) -}}
{{- fail (printf "router.autoscaling.maxReplicas must be at least router.autoscaling.minReplicas, which is %d" (int .autoscaling.minReplicas)) -}}
{{- end -}}
{{- if not (or (dig "requests" "cpu" "" .resources) (dig "limits" "cpu" "" .resources)) -}}
{{- fail "router.resources.requests.cpu must be set when router.autoscaling.enabled is true, because the utilization is relative to it" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/*
The flags of `switchboard route` as environment variables.
*/}}
{{- define "switchboard.router.environment" -}}
- name: SWITCHBOARD_INBOUND_ADDRESS
  value: "[::]:{{ .Values.router.port }}"
- name: SWITCHBOARD_HEALTH_ADDRESS
  value: "[::]:{{ .Values.health.port }}"
- name: SWITCHBOARD_DRAIN_DELAY
  value: {{ .Values.router.drainDelay }}
- name: SWITCHBOARD_SOURCES_FILE
  value: /etc/switchboard/config/sources.yaml
- name: SWITCHBOARD_SECRETS_DIRECTORY
  value: /etc/switchboard/secrets
{{- with include "switchboard.sinkURL" .Values.router.deadLetterSink }}
- name: SWITCHBOARD_DEAD_LETTER_SINK
  value: {{ . | quote }}
{{- end }}
{{- include "switchboard.sinkEnvironment" .Values.router }}
{{ include "switchboard.telemetryEnvironment" . }}
{{- end }}

{{/*
The volumes of the router's pod, except its token.
*/}}
{{- define "switchboard.router.volumes" -}}
- name: config
  configMap:
    name: {{ include "switchboard.router.name" . }}
{{- range $name, $source := .Values.router.sources }}
- name: source-{{ $name }}
  secret:
    secretName: {{ $source.secretName }}
{{- end }}
{{- include "switchboard.sinkVolumes" .Values.router }}
{{- end }}
