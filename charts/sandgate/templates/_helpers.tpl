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

{{/* metadata of an object: (dict "root" $ "name" … "component" … "annotations" …) */}}
{{- define "sandgate.metadata" -}}
metadata:
  name: {{ .name }}
  {{- if not .clusterScoped }}
  namespace: {{ .root.Release.Namespace }}
  {{- end }}
  labels:
    {{- include "sandgate.labels" . | nindent 4 }}
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

{{/* SPIFFE IDs of the routers whose word gates take, as a JSON list. */}}
{{- define "sandgate.routerIdentities" -}}
{{- $own := list (printf "spiffe://%s/ns/%s/sa/%s" .Values.trustDomain .Release.Namespace .Values.router.serviceAccount.name) -}}
{{- ternary .Values.injection.routerIdentities $own (not (empty .Values.injection.routerIdentities)) | toJson -}}
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

{{/* The gate's arguments, as the injector writes them; the log level, which a pod may choose, is left out. */}}
{{- define "sandgate.gateArgs" -}}
{{- $args := list -}}
{{- range fromJsonArray (include "sandgate.routerIdentities" .) }}{{ $args = append $args (printf "--router-identity=%s" .) }}{{ end -}}
{{- $args = concat $args (list (printf "--trust-domain=%s" .Values.trustDomain) "--tls-cert-file=/run/sandgate/tls.crt" "--tls-key-file=/run/sandgate/tls.key" "--trust-bundle-file=/run/sandgate/bundle.pem" "--policy-file=/run/sandgate/policy.json") -}}
{{- $args | toJson -}}
{{- end }}

{{/* CEL: whether every container of the list `containers` keeps away from the gate and from the node. (dict "list" …) */}}
{{- define "sandgate.containerRules" -}}
- expression: >-
    {{ .list }}.all(c, !has(c.volumeMounts) || c.volumeMounts.all(m, !(m.name in ['sandgate-token', 'sandgate-state'])))
  message: "a container mounts a volume of the gate (sandgate-token or sandgate-state); remove the mount"
- expression: >-
    {{ .list }}.all(c, !has(c.securityContext) || !has(c.securityContext.privileged) || !c.securityContext.privileged)
  message: "a container is privileged, which holds every gate's key on the node; remove securityContext.privileged"
- expression: >-
    {{ .list }}.all(c, !has(c.securityContext) || !has(c.securityContext.capabilities) || !has(c.securityContext.capabilities.add) ||
    c.securityContext.capabilities.add.all(a, a.upperAscii().replace('CAP_', '', 1) in
    ['AUDIT_WRITE', 'CHOWN', 'DAC_OVERRIDE', 'FOWNER', 'FSETID', 'KILL', 'MKNOD', 'NET_BIND_SERVICE', 'SETFCAP', 'SETGID', 'SETPCAP', 'SETUID', 'SYS_CHROOT']))
  message: "a container adds a capability outside Pod Security's baseline or NET_RAW; remove it from securityContext.capabilities.add"
- expression: >-
    {{ .list }}.all(c, !has(c.securityContext) || !has(c.securityContext.procMount) || c.securityContext.procMount == 'Default')
  message: "a container asks for procMount Unmasked; remove securityContext.procMount"
- expression: >-
    {{ .list }}.all(c, !has(c.securityContext) || ((!has(c.securityContext.runAsUser) || c.securityContext.runAsUser != 2102) &&
    (!has(c.securityContext.runAsGroup) || c.securityContext.runAsGroup != 2102)))
  message: "a container runs as the gate's user or group 2102; choose another securityContext.runAsUser and runAsGroup"
- expression: >-
    {{ .list }}.all(c, !has(c.securityContext) || !has(c.securityContext.seccompProfile) || c.securityContext.seccompProfile.type != 'Unconfined')
  message: "a container's seccompProfile is Unconfined; use RuntimeDefault"
- expression: >-
    {{ .list }}.all(c, !has(c.securityContext) || !has(c.securityContext.appArmorProfile) || c.securityContext.appArmorProfile.type != 'Unconfined')
  message: "a container's appArmorProfile is Unconfined; use RuntimeDefault"
- expression: >-
    {{ .list }}.all(c, !has(c.securityContext) || !has(c.securityContext.seLinuxOptions) || (
    (!has(c.securityContext.seLinuxOptions.user) || c.securityContext.seLinuxOptions.user == '') &&
    (!has(c.securityContext.seLinuxOptions.role) || c.securityContext.seLinuxOptions.role == '') &&
    (!has(c.securityContext.seLinuxOptions.type) || c.securityContext.seLinuxOptions.type in ['', 'container_t', 'container_init_t', 'container_kvm_t', 'container_engine_t'])))
  message: "a container sets seLinuxOptions outside Pod Security's baseline; remove them"
- expression: >-
    {{ .list }}.all(c, !has(c.securityContext) || !has(c.securityContext.windowsOptions))
  message: "a container sets windowsOptions; gates run on Linux only"
- expression: >-
    {{ .list }}.all(c, !has(c.volumeDevices) || c.volumeDevices.size() == 0)
  message: "a container uses a block device, which could hold another pod's files; remove volumeDevices"
- expression: >-
    {{ .list }}.all(c, !has(c.ports) || c.ports.all(p, !has(p.hostPort) || p.hostPort == 0))
  message: "a container uses a hostPort; remove it"
- expression: >-
    {{ .list }}.all(c, !has(c.ports) || c.ports.all(p, !(p.containerPort in [14443, 14480]) && !(has(p.name) && p.name.startsWith('sandgate-'))))
  message: "a container declares a port that is the gate's (14443, 14480 or a name that starts with sandgate-); choose another"
{{- end }}

{{/* The injector's flags. */}}
{{- define "sandgate.injectorArgs" -}}
- serve
- --image={{ include "sandgate.image" (dict "root" $ "image" .Values.injection.image) }}
{{- end }}

{{- define "sandgate.binding" -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
{{ include "sandgate.metadata" (dict "root" .root "component" "admission-policy" "clusterScoped" true "name" .name) }}
spec:
  policyName: {{ .name }}
  validationActions: [Deny]
{{- end }}

{{- define "sandgate.clientConfig" -}}
clientConfig:
  service:
    name: {{ include "sandgate.injectorName" .root }}
    namespace: {{ .root.Release.Namespace }}
    path: {{ .path }}
    port: 443
  {{- with .root.Values.injector.webhook.certificate.caBundle }}
  caBundle: {{ . }}
  {{- end }}
{{- end }}

{{- define "sandgate.optedIn" -}}
namespaceSelector:
  matchExpressions:
    - key: sandgate.dev/inject
      operator: In
      values: [enabled]
    - key: kubernetes.io/metadata.name
      operator: NotIn
      values: {{ include "sandgate.excludedNamespaces" . }}
{{- end }}
