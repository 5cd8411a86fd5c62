{{/* Names of this release's objects. */}}
{{- define "sandgate.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "sandgate.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
app.kubernetes.io/name: sandgate
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* metadata of an object: (dict "root" $ "name" … "component" … "labels" … "annotations" …) */}}
{{- define "sandgate.metadata" -}}
metadata:
  name: {{ .name }}
  {{- if not .clusterScoped }}
  namespace: {{ .root.Release.Namespace }}
  {{- end }}
  labels:
    {{- include "sandgate.labels" . | nindent 4 }}
    {{- with .labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with mergeOverwrite (deepCopy .root.Values.commonAnnotations) (.annotations | default dict) }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{- define "sandgate.selectorLabels" -}}
app.kubernetes.io/name: sandgate
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Image reference: (dict "root" $ "image" .Values.….image) */}}
{{- define "sandgate.image" -}}
{{- $registry := .root.Values.imageRegistry | trimSuffix "/" -}}
{{- $repository := .image.repository -}}
{{- $first := first (splitList "/" $repository) -}}
{{- if and $registry (not (or (contains "." $first) (contains ":" $first))) }}{{ $registry }}/{{ end -}}
{{ $repository }}
{{- if .image.digest }}@{{ .image.digest }}{{ else }}:{{ .image.tag | default .root.Chart.AppVersion }}{{ end }}
{{- end }}

{{/* What the restricted Pod Security level asks of our own pods. */}}
{{- define "sandgate.podSecurityContext" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- end }}
{{- define "sandgate.containerSecurityContext" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{/* What pods of router and injector have in common below `spec`: (dict "root" $ "component" … "values" .Values.…) */}}
{{- define "sandgate.scheduling" -}}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  {{- if .values.topologySpreadConstraints }}
  {{- toYaml .values.topologySpreadConstraints | nindent 2 }}
  {{- else }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "sandgate.selectorLabels" . | nindent 8 }}
  {{- end }}
{{- end }}

{{/* SPIFFE ID of this chart's router. */}}
{{- define "sandgate.routerIdentity" -}}
{{ printf "spiffe://%s/ns/%s/sa/%s" .Values.trustDomain .Release.Namespace .Values.router.serviceAccount.name }}
{{- end }}

{{/* SPIFFE IDs of the routers whose word gates take, as a JSON list. */}}
{{- define "sandgate.routerIdentities" -}}
{{- $own := list (include "sandgate.routerIdentity" .) -}}
{{- ternary .Values.injection.routerIdentities $own (not (empty .Values.injection.routerIdentities)) | toJson -}}
{{- end }}

{{/* SPIFFE ID of the control plane, which is the injector. */}}
{{- define "sandgate.controlIdentity" -}}
{{ printf "spiffe://%s/ns/%s/sa/%s" .Values.trustDomain .Release.Namespace .Values.injector.serviceAccount.name }}
{{- end }}

{{- define "sandgate.injectorName" -}}
{{ include "sandgate.fullname" . }}-injector
{{- end }}

{{/* Namespaces that are never touched, whatever their labels. */}}
{{- define "sandgate.excludedNamespaces" -}}
{{- list "kube-system" "kube-node-lease" .Release.Namespace | uniq | toJson -}}
{{- end }}

{{/* Seconds of a Go-style duration of hours, minutes and seconds. */}}
{{- define "sandgate.seconds" -}}
{{- $total := 0 -}}
{{- $units := dict "h" 3600 "m" 60 "s" 1 -}}
{{- range regexFindAll "[0-9]+(h|m|s)" . -1 -}}
{{- $total = add $total (mul (atoi (regexReplaceAll "[hms]" . "")) (get $units (regexFind "[hms]" .))) -}}
{{- end -}}
{{- $total -}}
{{- end }}

{{/* Whether the API server itself judges pods: ValidatingAdmissionPolicy is GA since 1.30. */}}
{{- define "sandgate.hasAdmissionPolicy" -}}
{{- if and .Values.admissionPolicy.enabled (semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version) }}true{{ end -}}
{{- end }}

{{/* The injector's flags about gates. Each is given, also where it is the program's default: the policies are rendered from the same values. */}}
{{- define "sandgate.injectionArgs" -}}
{{- $injection := .Values.injection -}}
- --sidecar-image={{ include "sandgate.image" (dict "root" . "image" $injection.image) }}
{{- range $injection.acceptedImages }}
- --accepted-sidecar-image={{ . }}
{{- end }}
- --sidecar-image-pull-policy={{ $injection.image.pullPolicy }}
{{- range $bound, $amounts := $injection.resources }}
{{- range $resource, $amount := $amounts }}
- --sidecar-{{ $resource }}-{{ trimSuffix "s" $bound }}={{ $amount }}
{{- end }}
{{- end }}
- --sidecar-log-level={{ $injection.logLevel }}
{{- range fromJsonArray (include "sandgate.routerIdentities" .) }}
- --router-identity={{ . }}
{{- end }}
{{- range $injection.acceptedRouterIdentities }}
- --accepted-router-identity={{ . }}
{{- end }}
- --control-identity={{ include "sandgate.controlIdentity" . }}
- --trust-domain={{ .Values.trustDomain }}
- --identity-source={{ $injection.identitySource }}
{{- if $injection.allowOptOut }}
- --allow-opt-out
{{- end }}
- --lockdown={{ $injection.lockdown }}
{{- range $injection.lockdownRuntimeClasses }}
- --lockdown-runtime-class={{ . }}
{{- end }}
{{- end }}

{{/* Whether the injector signs Pod Certificates: of new pods, or of those that run since. */}}
{{- define "sandgate.signsPodCertificates" -}}
{{- if or (eq .Values.injection.identitySource "pod-certificates") .Values.injector.signPodCertificates }}true{{ end -}}
{{- end }}

{{/* The command that asks a running injector what it would do to a pod. The pod's environment has the namespace. */}}
{{- define "sandgate.explainCommand" -}}
kubectl exec -i -n {{ .Release.Namespace }} deploy/{{ include "sandgate.injectorName" . }} -- /sandbox-injector explain -f - \
{{- range fromYamlArray (include "sandgate.injectionArgs" .) }}
  {{ . }} \
{{- end }}
  < sandbox.yaml
{{- end }}

{{/* Thousandths of a core, or bytes, of an amount that the schema lets through: (dict "resource" "cpu" "amount" …) */}}
{{- define "sandgate.amount" -}}
{{- $text := toString .amount -}}
{{- if eq .resource "memory" -}}
{{- $units := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 -}}
{{- mul (regexFind "^[0-9]+" $text | atoi) (get $units (regexFind "[A-Za-z]*$" $text)) -}}
{{- else if hasSuffix "m" $text -}}
{{- trimSuffix "m" $text | atoi -}}
{{- else -}}
{{- $parts := splitList "." (printf "%s.0" $text) -}}
{{- add (mul (first $parts | atoi) 1000) (printf "%s000" (index $parts 1) | trunc 3 | atoi) -}}
{{- end -}}
{{- end }}

{{/* All of its flags. */}}
{{- define "sandgate.injectorArgs" -}}
{{- $injection := .Values.injection -}}
{{- $issued := eq .Values.injector.webhook.certificate.source "self" -}}
- serve
{{ include "sandgate.injectionArgs" . }}
- --restrict-connect={{ $injection.restrictConnect }}
- --network-policy={{ $injection.networkPolicy }}
- --default-policy={{ .Values.injector.defaultPolicy }}
- --gate-certificate-lifetime={{ .Values.injector.gateCertificateLifetime }}
- --sign-pod-certificates={{ eq (include "sandgate.signsPodCertificates" .) "true" }}
- --authority-secret={{ include "sandgate.authoritySecret" . }}
- --roots-config-map={{ include "sandgate.rootsConfigMap" . }}
{{- if eq .Values.injector.authority.source "self" }}
- --root-max-age={{ .Values.injector.authority.rotateAfter }}
{{- else }}
- --authority-certificate-file=/etc/sandgate/authority/tls.crt
- --authority-key-file=/etc/sandgate/authority/tls.key
{{- end }}
{{- with include "sandgate.routersFollowWithin" . }}
- --routers-follow-within={{ . }}
{{- end }}
- --webhook-configuration={{ include "sandgate.injectorName" . }}
- --manage-ca-bundle={{ $issued }}
{{- if $issued }}
- --webhook-name={{ include "sandgate.injectorName" . }}.{{ .Release.Namespace }}.svc
{{- else }}
- --webhook-cert-file=/etc/sandgate/webhook/tls.crt
- --webhook-key-file=/etc/sandgate/webhook/tls.key
{{- end }}
- --log-level={{ .Values.injector.logLevel }}
{{- end }}

{{/* How soon routers that nobody here can see follow a step of the root's replacement. Of those that are enrolled the injector
knows, so where there are no others nobody has to be waited for; gates that were given others before are served by them still. */}}
{{- define "sandgate.routersFollowWithin" -}}
{{- $enrolled := and .Values.router.enabled (ne .Values.router.mesh.mode "off") (eq .Values.router.mesh.certificate.source "enrolled") -}}
{{- if .Values.injector.authority.routersFollowWithin -}}
{{ .Values.injector.authority.routersFollowWithin }}
{{- else if and $enrolled (not .Values.injection.routerIdentities) (not .Values.injection.acceptedRouterIdentities) -}}
0s
{{- end -}}
{{- end }}

{{- define "sandgate.authoritySecret" -}}
{{ include "sandgate.fullname" . }}-authority
{{- end }}

{{- define "sandgate.rootsConfigMap" -}}
{{ include "sandgate.fullname" . }}-roots
{{- end }}

{{- define "sandgate.clientConfig" -}}
clientConfig:
  service:
    name: {{ include "sandgate.injectorName" .root }}
    namespace: {{ .root.Release.Namespace }}
    path: {{ .path }}
    port: 443
  {{- $certificate := .root.Values.injector.webhook.certificate }}
  {{- if eq $certificate.source "secret" }}
  caBundle: {{ $certificate.caBundle }}
  {{- end }}
{{- end }}
