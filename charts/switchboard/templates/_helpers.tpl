{{/*
The name of every object, independent of the release name. A cluster has only one operator, because the CRDs and the AddressBindings
are cluster-scoped: two operators would write the same claims. As all names are fixed, Helm rejects a second release.
*/}}
{{- define "switchboard.name" -}}
switchboard
{{- end }}

{{/*
The labels by which the Services and the Deployment select their pods. They must never change, because a Deployment's selector is
immutable.
*/}}
{{- define "switchboard.selectorLabels" -}}
app.kubernetes.io/name: {{ include "switchboard.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/*
The labels of every object of the operator.
*/}}
{{- define "switchboard.labels" -}}
{{ include "switchboard.selectorLabels" . }}
{{ include "switchboard.releaseLabels" . }}
{{- end }}

{{/*
The labels of the release, which no selector uses.
*/}}
{{- define "switchboard.releaseLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: switchboard
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/*
The operator's user name, which is that of its service account. The policies allow writes by this user only.
*/}}
{{- define "switchboard.username" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "switchboard.name" . }}
{{- end }}

{{/*
A CustomResourceDefinition from files/crds, the generated ones of the repository, with the labels and annotations of the release.
Called with (dict "root" $ "file" "conversations.yaml").
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

{{/*
The operator's image. If a digest is set, the runtime ignores the tag.
*/}}
{{- define "switchboard.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- with .Values.image.digest }}@{{ . }}{{ end }}
{{- end }}

{{/*
"true" if the operator issues its own certificate, otherwise empty.
*/}}
{{- define "switchboard.managesItsCertificate" -}}
{{- if not (or .Values.certManager.enabled .Values.webhook.caBundle) -}}true{{- end -}}
{{- end }}

{{/*
The Secret with the certificate that the operator issues itself.
*/}}
{{- define "switchboard.tlsSecretName" -}}
{{ include "switchboard.name" . }}-webhook-tls
{{- end }}

{{/*
The host at which the API server calls the webhook. The certificate is issued for it.
*/}}
{{- define "switchboard.webhookHost" -}}
{{- with .Values.webhook.url -}}
{{- $host := (urlParse .).host -}}
{{- if hasPrefix "[" $host -}}
{{- regexReplaceAll "^\\[(.*)\\].*$" $host "${1}" -}}
{{- else -}}
{{- regexReplaceAll ":[0-9]+$" $host "" -}}
{{- end -}}
{{- else -}}
{{ include "switchboard.name" . }}.{{ .Release.Namespace }}.svc
{{- end -}}
{{- end }}

{{/*
The termination grace period of a pod: its drain delay, which is the argument, and 25 s.
*/}}
{{- define "switchboard.terminationGracePeriod" -}}
{{ add (trimSuffix "s" .) 25 }}
{{- end }}

{{/*
The port of an OTLP endpoint. The argument is the endpoint.
*/}}
{{- define "switchboard.otlpPort" -}}
{{- $url := urlParse . -}}
{{- if regexMatch ":[0-9]+$" $url.host -}}
{{- regexFind "[0-9]+$" $url.host -}}
{{- else -}}
80
{{- end -}}
{{- end }}

{{/*
The flags of `switchboard run` as environment variables. All other flags keep their defaults.
*/}}
{{- define "switchboard.environment" -}}
- name: SWITCHBOARD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: SWITCHBOARD_IDENTITY
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: SWITCHBOARD_WEBHOOK_ADDRESS
  value: "[::]:{{ .Values.webhook.port }}"
- name: SWITCHBOARD_HEALTH_ADDRESS
  value: "[::]:{{ .Values.health.port }}"
- name: SWITCHBOARD_DRAIN_DELAY
  value: {{ .Values.webhook.drainDelay }}
{{- if .Values.certManager.enabled }}
- name: SWITCHBOARD_TLS_CERT_FILE
  value: /etc/switchboard/tls/tls.crt
- name: SWITCHBOARD_TLS_KEY_FILE
  value: /etc/switchboard/tls/tls.key
{{- else }}
- name: SWITCHBOARD_TLS_SECRET_NAME
  value: {{ include "switchboard.tlsSecretName" . }}
- name: SWITCHBOARD_WEBHOOK_CONFIGURATION
  value: {{ include "switchboard.name" . }}
- name: SWITCHBOARD_CERTIFICATE_LIFE
  value: {{ .Values.webhook.certificateLife }}
- name: SWITCHBOARD_WEBHOOK_DNS_NAME
  value: {{ include "switchboard.webhookHost" . | quote }}
{{- end }}
{{- with .Values.webhook.clientCA }}
{{- if .configMap }}
- name: SWITCHBOARD_CLIENT_CA_FILE
  value: /etc/switchboard/client-ca/ca.crt
{{- with .names }}
- name: SWITCHBOARD_CLIENT_NAME
  value: {{ join "," . | quote }}
{{- end }}
{{- end }}
{{- end }}
- name: SWITCHBOARD_LEASE_NAME
  value: {{ include "switchboard.name" . }}
- name: SWITCHBOARD_LEASE_DURATION
  value: {{ .Values.leaseDuration }}
- name: SWITCHBOARD_GRACE_PERIOD
  value: {{ .Values.gracePeriod }}
{{- if .Values.proxyAddresses.required }}
- name: SWITCHBOARD_REQUIRE_PROXY_ADDRESSES
  value: "true"
{{- end }}
- name: SWITCHBOARD_DEFAULTS_DELAY
  value: {{ .Values.defaults.delay }}
{{- with .Values.defaults.timers }}
{{- with .inactiveAfter }}
- name: SWITCHBOARD_DEFAULT_INACTIVE_AFTER
  value: {{ . | quote }}
{{- end }}
{{- with .closeAfter }}
- name: SWITCHBOARD_DEFAULT_CLOSE_AFTER
  value: {{ . | quote }}
{{- end }}
{{- with .closeUnassignedAfter }}
- name: SWITCHBOARD_DEFAULT_CLOSE_UNASSIGNED_AFTER
  value: {{ . | quote }}
{{- end }}
{{- end }}
{{- with include "switchboard.sinkURL" .Values.events.sink }}
- name: SWITCHBOARD_EVENTS_SINK
  value: {{ . | quote }}
{{- end }}
{{- include "switchboard.sinkEnvironment" .Values.events }}
{{ include "switchboard.telemetryEnvironment" . }}
{{- end }}

{{/*
The flags for logs and traces, which all processes have, as environment variables.
*/}}
{{- define "switchboard.telemetryEnvironment" -}}
- name: SWITCHBOARD_LOG_FORMAT
  value: {{ .Values.log.format }}
{{- with .Values.log.filter }}
- name: SWITCHBOARD_LOG
  value: {{ . | quote }}
{{- end }}
{{- with .Values.tracing.otlpEndpoint }}
- name: SWITCHBOARD_OTLP_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- end }}

{{/*
The volumes of the pod, except its token. There are none if the operator issues its certificate, accepts any client, and signs no events.
*/}}
{{- define "switchboard.volumes" -}}
{{- if .Values.certManager.enabled }}
- name: tls
  secret:
    secretName: {{ include "switchboard.name" . }}-tls
{{- end }}
{{- with .Values.webhook.clientCA.configMap }}
- name: client-ca
  configMap:
    name: {{ . }}
{{- end }}
{{- include "switchboard.sinkVolumes" .Values.events }}
{{- end }}

{{/*
The security context of a pod.
*/}}
{{- define "switchboard.podSecurityContext" -}}
# As Pod Security "restricted" requires. No user is set here: it is that of the image, or one that the platform assigns (OpenShift).
securityContext:
  runAsNonRoot: true
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{/*
The security context of a container.
*/}}
{{- define "switchboard.containerSecurityContext" -}}
securityContext:
  allowPrivilegeEscalation: false
  capabilities:
    drop: [ALL]
  readOnlyRootFilesystem: true
  # The kubelet passes the image's user to the runtime, but not its group; containerd then uses the group of root. The group is
  # set here and not for the pod, because the sandbox would get a group without a user, which runtimes reject.
  runAsGroup: 65532
{{- end }}

{{/*
The probes of a container.
*/}}
{{- define "switchboard.probes" -}}
# Each failed probe causes a Warning Event, so the first one comes when a start is usually complete: after 2 s. On two busy cores, a
# replica with few objects needs 0.2 to 0.5 s. A startup probe would fail earlier. If the start is still in progress, /readyz waits
# for it, up to 3 s.
#
# /livez does not depend on the watches: a replica that responds is alive.
livenessProbe:
  httpGet:
    path: /livez
    port: health
  initialDelaySeconds: 2
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet:
    path: /readyz
    port: health
  initialDelaySeconds: 2
  periodSeconds: 2
  timeoutSeconds: 4
  failureThreshold: 2
{{- end }}

{{/*
The fields of a pod that decide on which node it runs. Called with a dict: "values" has the values nodeSelector, tolerations, affinity and
topologySpreadConstraints, "selectorLabels" the labels of the pods, "replicas" the number of pods.
*/}}
{{- define "switchboard.scheduling" -}}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $spreads := and (gt (int .replicas) 1) (not .values.topologySpreadConstraints) }}
{{- $affinity := deepCopy (.values.affinity | default dict) }}
{{- if and $spreads (not (hasKey $affinity "podAntiAffinity")) }}
{{- $_ := set $affinity "podAntiAffinity" (include "switchboard.zoneAntiAffinity" .selectorLabels | fromYaml) }}
{{- end }}
{{- with $affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml .values.topologySpreadConstraints | nindent 2 }}
{{- else if $spreads }}
# Spread the pods of one revision over nodes. Pods of the previous revision do not count: they are about to be deleted.
# Zones have no constraint here, but the affinity above: the scheduler ignores all constraints on a node that lacks the key of
# one of them, so a constraint for zones would disable this one on nodes without a zone. Both are preferences: a single node
# can run all replicas.
topologySpreadConstraints:
  - topologyKey: kubernetes.io/hostname
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- .selectorLabels | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
{{- end }}
{{- end }}

{{/*
The preference to run replicas of one revision in different zones. It has no effect on nodes without a zone. The argument is the labels of
the pods.
*/}}
{{- define "switchboard.zoneAntiAffinity" -}}
preferredDuringSchedulingIgnoredDuringExecution:
  - weight: 100
    podAffinityTerm:
      topologyKey: topology.kubernetes.io/zone
      labelSelector:
        matchLabels:
          {{- . | nindent 10 }}
      matchLabelKeys: [pod-template-hash]
{{- end }}
