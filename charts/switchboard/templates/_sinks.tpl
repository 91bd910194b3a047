{{/*
The URL of a sink, or nothing. The argument is the value: `uri`, or `service`.
*/}}
{{- define "switchboard.sinkURL" -}}
{{- with .uri -}}
{{ . }}
{{- end -}}
{{- with .service -}}
http://{{ .name }}.{{ .namespace }}.svc:{{ .port | default 80 }}{{ .path | default "/" }}
{{- end -}}
{{- end }}

{{/*
Fails if the values of a sink contradict each other. Called with (dict "root" $ "name" "events.sink" "sink" .Values.events.sink).
*/}}
{{- define "switchboard.validateSink" -}}
{{- $root := .root -}}
{{- $name := .name -}}
{{- if and .sink.uri .sink.service -}}
{{- fail (printf "%s must have either uri or service: remove one of them" $name) -}}
{{- end -}}
{{- with .sink.service -}}
{{- if and (eq .name (include "switchboard.router.name" $root)) (eq .namespace $root.Release.Namespace) -}}
{{- fail (printf "%s.service must not be the router itself, because it refuses events of switchboard: set a service that processes them" $name) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/*
Fails if the certificate authorities of the sinks are set twice. Called with (dict "name" "events.sinkCA" "sinkCA" .Values.events.sinkCA).
*/}}
{{- define "switchboard.validateSinkCA" -}}
{{- if and .sinkCA.configMap .sinkCA.secret -}}
{{- fail (printf "%s must have either configMap or secret: leave one of them empty, and put all certificates into the other" .name) -}}
{{- end -}}
{{- end }}

{{/*
The flags of the client of the sinks as environment variables. The argument of this and of the next two are the values with `signing` and
`sinkCA`.
*/}}
{{- define "switchboard.sinkEnvironment" -}}
{{- if .signing.secretName }}
- name: SWITCHBOARD_SIGNING_SECRETS_DIRECTORY
  value: /etc/switchboard/signing
{{- end }}
{{- if or .sinkCA.configMap .sinkCA.secret }}
- name: SWITCHBOARD_SINK_CA_FILE
  value: /etc/switchboard/sink-ca/ca.crt
{{- end }}
{{- end }}

{{/*
The mounts of the volumes of the client of the sinks.
*/}}
{{- define "switchboard.sinkVolumeMounts" -}}
{{- if .signing.secretName }}
- name: signing
  mountPath: /etc/switchboard/signing
  readOnly: true
{{- end }}
{{- if or .sinkCA.configMap .sinkCA.secret }}
- name: sink-ca
  mountPath: /etc/switchboard/sink-ca
  readOnly: true
{{- end }}
{{- end }}

{{/*
The volumes of the client of the sinks.
*/}}
{{- define "switchboard.sinkVolumes" -}}
{{- with .signing.secretName }}
- name: signing
  secret:
    secretName: {{ . }}
{{- end }}
{{- with .sinkCA }}
{{- if .configMap }}
- name: sink-ca
  configMap:
    name: {{ .configMap }}
    items:
      - key: {{ .key }}
        path: ca.crt
{{- else if .secret }}
- name: sink-ca
  secret:
    secretName: {{ .secret }}
    items:
      - key: {{ .key }}
        path: ca.crt
{{- end }}
{{- end }}
{{- end }}

{{/*
Fails if the values of the lifecycle events contradict each other.
*/}}
{{- define "switchboard.validateEvents" -}}
{{- $root := . -}}
{{- with .Values.events -}}
{{- include "switchboard.validateSink" (dict "root" $root "name" "events.sink" "sink" .sink) -}}
{{- include "switchboard.validateSinkCA" (dict "name" "events.sinkCA" "sinkCA" .sinkCA) -}}
{{- if and (not .sink) (or .signing.secretName .sinkCA.configMap .sinkCA.secret) -}}
{{- fail "events.signing and events.sinkCA have no effect without events.sink: set it, or remove them" -}}
{{- end -}}
{{- if and .sink (not $root.Values.deployment.enabled) -}}
{{- fail "events.sink is for the operator in the cluster: if deployment.enabled is false, set the flag --events-sink of the operator instead" -}}
{{- end -}}
{{- end -}}
{{- end }}
