{{/*
The parts of a gate as the injector adds them and the API server stores them. tests/cluster compares them with what the
injector really adds.
*/}}

{{/* CEL: the names of its containers, with lockdown or without, and of its volumes. */}}
{{- define "sandgate.ownContainers" -}}
{{ include "sandgate.cel" (list "sandgate" "sandgate-lockdown") }}
{{- end }}
{{- define "sandgate.ownVolumes" -}}
{{ include "sandgate.cel" (list "sandgate-token" "sandgate-identity" "sandgate-state") }}
{{- end }}

{{/* The one of them from which a gate has its identity: the kubelet's certificate and roots, or a token for the control plane. */}}
{{- define "sandgate.identityVolume" -}}
{{ ternary "sandgate-identity" "sandgate-token" (eq .Values.injection.identitySource "pod-certificates") }}
{{- end }}

{{/* The annotations by which a pod's author chooses for its gate, as a JSON list. */}}
{{- define "sandgate.tenantAnnotations" -}}
{{ list "sandgate.dev/cpu-request" "sandgate.dev/cpu-limit" "sandgate.dev/memory-request" "sandgate.dev/memory-limit" "sandgate.dev/log-level" | toJson }}
{{- end }}

{{/* Fields of the container that are fixed. Arguments and environment have helpers of their own. */}}
{{- define "sandgate.gate" -}}
image: {{ include "sandgate.image" (dict "root" . "image" .Values.injection.image) }}
restartPolicy: Always
command: [/sandbox-sidecar]
ports:
  - {name: sandgate-mesh, containerPort: 14443, protocol: TCP}
  - {name: sandgate-health, containerPort: 14480, protocol: TCP}
securityContext:
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL]}
  privileged: false
  readOnlyRootFilesystem: true
  runAsGroup: 2102
  runAsNonRoot: true
  runAsUser: 2102
  seccompProfile: {type: RuntimeDefault}
lifecycle:
  postStart:
    exec: {command: [/sandbox-sidecar, await-ports, --state-folder=/run/sandgate]}
readinessProbe:
  httpGet: {path: /readyz, port: 14480, scheme: HTTP}
  timeoutSeconds: 1
  periodSeconds: 2
  successThreshold: 1
  failureThreshold: 2
volumeMounts:
  - {name: {{ include "sandgate.identityVolume" . }}, readOnly: true, mountPath: /var/run/secrets/kubernetes.io/serviceaccount}
  - {name: sandgate-state, mountPath: /run/sandgate}
{{- end }}

{{/* Its arguments but for the last, which is the log level. */}}
{{- define "sandgate.gateArgs" -}}
{{- $args := list -}}
{{- range fromJsonArray (include "sandgate.routerIdentities" .) }}{{ $args = append $args (printf "--router-identity=%s" .) }}{{ end -}}
{{- $control := printf "--control-identity=%s" (include "sandgate.controlIdentity" .) -}}
{{- $args = concat $args (list $control (printf "--trust-domain=%s" .Values.trustDomain) "--state-folder=/run/sandgate") -}}
{{- if eq .Values.injection.identitySource "pod-certificates" -}}
{{- $folder := "/var/run/secrets/kubernetes.io/serviceaccount" -}}
{{- $args = concat $args (list (printf "--credential-bundle-file=%s/credentials.pem" $folder) (printf "--trust-bundle-file=%s/roots.pem" $folder)) -}}
{{- end -}}
{{- toJson $args -}}
{{- end }}

{{/* Its environment, but for the roots, which nobody knows when this is rendered. With lockdown a list of the app's probes may follow them. */}}
{{- define "sandgate.gateEnv" -}}
- {name: SANDGATE_NAMESPACE, valueFrom: {fieldRef: {apiVersion: v1, fieldPath: metadata.namespace}}}
- {name: SANDGATE_SANDBOX, valueFrom: {fieldRef: {apiVersion: v1, fieldPath: metadata.name}}}
- {name: SANDGATE_POD_UID, valueFrom: {fieldRef: {apiVersion: v1, fieldPath: metadata.uid}}}
{{- end }}

{{/* Fields of the lockdown container. */}}
{{- define "sandgate.lockdown" -}}
image: {{ include "sandgate.image" (dict "root" . "image" .Values.injection.image) }}
command: [/sandbox-sidecar]
args: [lockdown, --mesh-port=14443, --health-port=14480]
securityContext:
  allowPrivilegeEscalation: false
  capabilities: {add: [NET_ADMIN], drop: [ALL]}
  privileged: false
  readOnlyRootFilesystem: true
  runAsGroup: 0
  runAsNonRoot: false
  runAsUser: 0
  seccompProfile: {type: RuntimeDefault}
volumeMounts:
  - {name: {{ include "sandgate.identityVolume" . }}, readOnly: true, mountPath: /var/run/secrets/kubernetes.io/serviceaccount}
{{- end }}

{{/* One rule for each field of one of these containers: (dict "fields" … "images" … "injection" … "container" CEL "guard" CEL "place" …) */}}
{{- define "sandgate.fieldRules" -}}
{{- range $field, $expected := .fields }}
{{- $allowed := list $expected }}
{{- /* What the operator accepts as well, and what releases of Kubernetes may add to mean the same. */}}
{{- if eq $field "image" }}
{{- $allowed = concat $allowed $.images }}
{{- else if eq $field "securityContext" }}
{{- $allowed = append $allowed (mergeOverwrite (deepCopy $expected) (dict "procMount" "Default")) }}
{{- else if hasSuffix "Probe" $field }}
{{- $allowed = append $allowed (mergeOverwrite (deepCopy $expected) (dict "httpGet" (dict "protocol" "HTTP1"))) }}
{{- end }}
- expression: >-
    !{{ $.guard }} || (has({{ $.container }}.{{ $field }}) && {{ $.container }}.{{ $field }} {{ if eq (len $allowed) 1 }}== {{ include "sandgate.cel" $expected }}{{ else }}in {{ include "sandgate.cel" $allowed }}{{ end }})
  message: "{{ $.place }}.{{ $field }}: it isn't what would be injected; remove all parts of the gate from the pod, they are added when it is created"
{{- end }}
- expression: >-
    !{{ .guard }} || {{ .container }}.all(field, field in {{ include "sandgate.cel" (concat (keys .fields | sortAlpha) .variable) }}) &&
    (!has({{ .container }}.terminationMessagePath) || {{ .container }}.terminationMessagePath == '/dev/termination-log') &&
    (!has({{ .container }}.resizePolicy) || {{ .container }}.resizePolicy.all(policy, policy.restartPolicy == 'NotRequired'))
  message: "{{ .place }}: it has a field that isn't injected; remove all parts of the gate from the pod, they are added when it is created"
- expression: >-
    !{{ .guard }} || !has({{ .container }}.imagePullPolicy) || {{ .container }}.imagePullPolicy in {{ include "sandgate.cel" (list .injection.image.pullPolicy "Always" | uniq) }}
  message: "{{ .place }}.imagePullPolicy: it isn't what would be injected; remove all parts of the gate from the pod, they are added when it is created"
{{- /* With too little memory the kernel would end the gate, and its ports be anybody's for a while. A LimitRange fills in the rest. */}}
- expression: >-
    !{{ .guard }} || (has({{ .container }}.resources) && {{ .container }}.resources.all(field, field in ['requests', 'limits']) &&
    (!has({{ .container }}.resources.requests) || {{ .container }}.resources.requests.all(name, name in ['cpu', 'memory', 'ephemeral-storage'])) &&
    has({{ .container }}.resources.limits) && {{ .container }}.resources.limits.all(name, name in ['cpu', 'memory', 'ephemeral-storage']) &&
    'memory' in {{ .container }}.resources.limits && ((quantity({{ .container }}.resources.limits['memory']).compareTo(quantity('32Mi')) >= 0 &&
    quantity({{ .container }}.resources.limits['memory']).compareTo(quantity('1Gi')) <= 0)
    {{- with .injection.resources.limits.memory }} || quantity({{ $.container }}.resources.limits['memory']).compareTo(quantity('{{ . }}')) == 0{{ end }}))
  message: "{{ .place }}.resources: the gate needs a limit of 32Mi to 1Gi of memory, and nothing but cpu, memory and ephemeral-storage; remove all parts of the gate from the pod, they are added when it is created"
{{- end }}

{{/* Rules for which pods have a gate, and where. */}}
{{- define "sandgate.presenceRules" -}}
{{- $lockdown := eq .Values.injection.lockdown "enabled" }}
- expression: variables.selected
  message: "metadata: a label or annotation says that this pod has a gate, but {{ if .Values.injection.allowOptOut }}it opts out, or {{ end }}nothing says that it is a sandbox; remove sandgate.dev/injected and sandgate.dev/shape"
- expression: "!('sandgate.dev/inject' in variables.labels) || variables.labels['sandgate.dev/inject'] in ['enabled', 'disabled']"
  message: "metadata.labels[sandgate.dev/inject]: it says neither yes nor no; set it to enabled, or remove it"
- expression: "!('kubernetes.io/config.mirror' in variables.annotations)"
  message: "metadata.annotations[kubernetes.io/config.mirror]: only a kubelet makes mirror pods; remove it"
{{- if $lockdown }}
- expression: variables.closed
  message: "spec.initContainers: sandgate-lockdown isn't the first; is the injector running, and did another webhook move it?"
{{- end }}
- expression: variables.gated
  message: "spec.initContainers: the gate isn't {{ ternary "next after sandgate-lockdown" "the first" $lockdown }}; is the injector running, and did another webhook move it?"
{{- end }}

{{/* Rules for all that a gate consists of. */}}
{{- define "sandgate.gateRules" -}}
{{- $lockdown := eq .Values.injection.lockdown "enabled" }}
{{- $args := fromJsonArray (include "sandgate.gateArgs" .) }}
{{- $env := fromYamlArray (include "sandgate.gateEnv" .) }}
{{- $variable := list "name" "imagePullPolicy" "resources" "resizePolicy" "terminationMessagePath" "terminationMessagePolicy" }}
{{- $last := len $args }}
{{- $value := printf "variables.gate.env[%d].value" (len $env) }}
{{- $given := printf "%s + [{'name': dyn('SANDGATE_TRUST_ANCHORS'), 'value': dyn(%s)}]" (include "sandgate.cel" $env) $value }}
{{- $probes := printf "variables.gate.env[%d].value" (add (len $env) 1) }}
{{- if $lockdown }}
{{ include "sandgate.fieldRules" (dict "fields" (fromYaml (include "sandgate.lockdown" .)) "images" .Values.injection.acceptedImages "injection" .Values.injection "container" "variables.inits[0]" "guard" "variables.closed" "place" "spec.initContainers[sandgate-lockdown]" "variable" $variable) }}
{{- end }}
{{ include "sandgate.fieldRules" (dict "fields" (fromYaml (include "sandgate.gate" .)) "images" .Values.injection.acceptedImages "injection" .Values.injection "container" "variables.gate" "guard" "variables.gated" "place" "spec.initContainers[sandgate]" "variable" (concat $variable (list "args" "env"))) }}
- expression: >-
    !variables.gated || (has(variables.gate.args) && variables.gate.args.size() == {{ add $last 1 }} &&
    variables.gate.args == {{ include "sandgate.cel" $args }} + [variables.gate.args[{{ $last }}]] &&
    variables.gate.args[{{ $last }}] in ['--log-level=error', '--log-level=warn', '--log-level=info', '--log-level=debug', '--log-level=trace'])
  message: "spec.initContainers[sandgate].args: they aren't what would be injected; remove all parts of the gate from the pod, they are added when it is created"
- expression: >-
    !variables.gated || (has(variables.gate.env) && variables.gate.env.size() > {{ len $env }} && has({{ $value }}) && (variables.gate.env == {{ $given }}
    {{- if $lockdown }} ||
    variables.gate.env.size() == {{ add (len $env) 2 }} && has({{ $probes }}) && variables.gate.env ==
    {{ $given }} + [{'name': dyn('SANDGATE_APP_PROBES'), 'value': dyn({{ $probes }})}]
    {{- end }}))
  message: "spec.initContainers[sandgate].env: it isn't what would be injected; remove all parts of the gate from the pod, they are added when it is created"
{{- /* Which roots they are, the webhook judges, which knows them. */}}
- expression: >-
    !variables.gated || !has(variables.gate.env) || variables.gate.env.size() <= {{ len $env }} || !has({{ $value }}) || ({{ $value }}.startsWith('-----BEGIN CERTIFICATE-----\n') && {{ $value }}.size() <= 16384)
  message: "spec.initContainers[sandgate].env[SANDGATE_TRUST_ANCHORS]: it holds no root certificates of 16 KiB at most; remove all parts of the gate from the pod, they are added when it is created"
{{- if eq .Values.injection.identitySource "pod-certificates" }}
- expression: >-
    variables.volumes.exists_one(v, v == {'name': dyn('sandgate-identity'), 'projected': dyn({'defaultMode': dyn(420), 'sources': dyn([
    dyn({'podCertificate': dyn({'signerName': dyn('sandgate.dev/gate'), 'keyType': dyn('ECDSAP256'), 'maxExpirationSeconds': dyn(7862400), 'credentialBundlePath': dyn('credentials.pem')})}),
    dyn({'clusterTrustBundle': dyn({'name': dyn('sandgate.dev:gate:roots'), 'path': dyn('roots.pem')})})])})}) &&
    variables.volumes.all(v, v.name != 'sandgate-token')
  message: "spec.volumes[sandgate-identity]: it isn't what would be injected; remove all parts of the gate from the pod, they are added when it is created"
{{- else }}
- expression: >-
    variables.volumes.all(v, v.name != 'sandgate-identity') &&
    variables.volumes.exists_one(v, v.name == 'sandgate-token' && v.all(field, field in ['name', 'projected']) && has(v.projected) &&
    v.projected.all(field, field in ['defaultMode', 'sources']) && v.projected.defaultMode == 420 && v.projected.sources != null && v.projected.sources.size() == 1 &&
    v.projected.sources[0].all(field, field == 'serviceAccountToken') && has(v.projected.sources[0].serviceAccountToken) &&
    has(v.projected.sources[0].serviceAccountToken.audience) && v.projected.sources[0].serviceAccountToken.audience == 'sandgate' && v.projected.sources[0].serviceAccountToken.path == 'token' &&
    v.projected.sources[0].serviceAccountToken.expirationSeconds >= 600 && v.projected.sources[0].serviceAccountToken.expirationSeconds <= 3660)
  message: "spec.volumes[sandgate-token]: it isn't what would be injected; remove all parts of the gate from the pod, they are added when it is created"
{{- end }}
- expression: >-
    variables.volumes.exists_one(v, v == {'name': dyn('sandgate-state'), 'emptyDir': dyn({'medium': 'Memory', 'sizeLimit': '4Mi'})})
  message: "spec.volumes[sandgate-state]: it isn't what would be injected; remove all parts of the gate from the pod, they are added when it is created"
- expression: "'sandgate.dev/injected' in variables.labels && variables.labels['sandgate.dev/injected'] == 'true'"
  message: "metadata.labels[sandgate.dev/injected]: a gated pod has it with the value true; leave it to the injector"
- expression: "'sandgate.dev/shape' in variables.annotations && variables.annotations['sandgate.dev/shape'] == '3'"
  message: "metadata.annotations[sandgate.dev/shape]: a gated pod has it with the value 3; leave it to the injector"
{{- end }}
