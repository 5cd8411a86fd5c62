{{/*
What keeps a pod's own containers away from the node and from the gate, as CEL: the injector's denials once more. Nothing
here depends on the injector running.
*/}}

{{/* Rules for a whole pod. */}}
{{- define "sandgate.podRules" -}}
- expression: >-
    (!has(object.spec.os) || object.spec.os.name != 'windows') && !has(variables.context.windowsOptions) &&
    !(has(object.spec.nodeSelector) && 'kubernetes.io/os' in object.spec.nodeSelector && object.spec.nodeSelector['kubernetes.io/os'] == 'windows')
  message: "spec.os, spec.nodeSelector or spec.securityContext.windowsOptions: the gate runs on Linux only; run the sandbox on Linux, or outside this namespace"
- expression: >-
    (!has(object.spec.hostNetwork) || !object.spec.hostNetwork) && (!has(object.spec.hostPID) || !object.spec.hostPID) &&
    (!has(object.spec.hostIPC) || !object.spec.hostIPC)
  message: "spec.hostNetwork, spec.hostPID or spec.hostIPC: the node's network and processes lead to every gate's key; remove it"
- expression: "variables.volumes.all(v, !has(v.hostPath))"
  message: "spec.volumes[*].hostPath: the node's files hold every gate's key; use an emptyDir, a ConfigMap, a Secret or a PersistentVolumeClaim"
- expression: "!has(object.spec.shareProcessNamespace) || !object.spec.shareProcessNamespace"
  message: "spec.shareProcessNamespace: the sandbox would see and signal the gate's process; remove it"
- expression: >-
    (!has(variables.context.runAsUser) || variables.context.runAsUser != 2102) && (!has(variables.context.runAsGroup) || variables.context.runAsGroup != 2102) &&
    (!has(variables.context.fsGroup) || variables.context.fsGroup != 2102) &&
    (!has(variables.context.supplementalGroups) || variables.context.supplementalGroups.all(group, group != 2102))
  message: "spec.securityContext: 2102 is the gate's user and group; choose another number"
- expression: >-
    !has(variables.context.sysctls) || variables.context.sysctls.all(s, s.name.replace('/', '.') in ['kernel.shm_rmid_forced',
    'net.ipv4.ip_local_port_range', 'net.ipv4.ip_local_reserved_ports', 'net.ipv4.ip_unprivileged_port_start', 'net.ipv4.ping_group_range',
    'net.ipv4.tcp_fin_timeout', 'net.ipv4.tcp_keepalive_intvl', 'net.ipv4.tcp_keepalive_probes', 'net.ipv4.tcp_keepalive_time',
    'net.ipv4.tcp_notsent_lowat', 'net.ipv4.tcp_rmem', 'net.ipv4.tcp_slow_start_after_idle', 'net.ipv4.tcp_syncookies', 'net.ipv4.tcp_wmem'])
  message: "spec.securityContext.sysctls: one isn't safe; remove it, the Pod Security level baseline lists the safe ones"
- expression: >-
    {{ include "sandgate.confined" "variables.context" }}
  message: "spec.securityContext: its seccompProfile, appArmorProfile or seLinuxOptions leave what confines a sandbox; remove them, or choose RuntimeDefault, Localhost or container_t"
- expression: "!has(variables.context.appArmorProfile) || variables.context.appArmorProfile.type != 'Localhost'"
  message: "spec.securityContext.appArmorProfile: a profile of the node's would hold for the gate too; choose it in the securityContext of each container instead"
- expression: >-
    {{ include "sandgate.ownContainers" . }}.all(name, !('container.apparmor.security.beta.kubernetes.io/' + name in variables.annotations) ||
    variables.annotations['container.apparmor.security.beta.kubernetes.io/' + name] in ['', 'runtime/default'])
  message: "metadata.annotations[container.apparmor.security.beta.kubernetes.io/sandgate*]: the gate isn't the sandbox's to confine; remove it"
- expression: >-
    variables.annotations.all(name, !name.startsWith('container.apparmor.security.beta.kubernetes.io/') ||
    variables.annotations[name] in ['', 'runtime/default'] || variables.annotations[name].startsWith('localhost/'))
  message: "metadata.annotations[container.apparmor.security.beta.kubernetes.io/*]: it lifts the AppArmor profile of the sandbox; remove it, or choose runtime/default or localhost/<profile>"
- expression: >-
    variables.labels.all(name, !name.startsWith('sandgate.dev/') || name in ['sandgate.dev/inject', 'sandgate.dev/injected'])
  message: "metadata.labels[sandgate.dev/*]: it is the gate's own name; remove it"
- expression: >-
    variables.annotations.all(name, !name.startsWith('sandgate.dev/') || name in
    {{ include "sandgate.cel" (prepend (include "sandgate.tenantAnnotations" . | fromJsonArray) "sandgate.dev/shape") }})
  message: "metadata.annotations[sandgate.dev/*]: it isn't one that a pod's author may set; remove it"
- expression: >-
    variables.volumes.all(v, v.name == '{{ include "sandgate.identityVolume" . }}' || !has(v.projected) || v.projected.sources == null || v.projected.sources.all(s,
    (!has(s.serviceAccountToken) || !has(s.serviceAccountToken.audience) || s.serviceAccountToken.audience != 'sandgate') &&
    (!has(s.podCertificate) || !s.podCertificate.signerName.startsWith('sandgate.dev/'))))
  message: "spec.volumes[*].projected.sources: a token for the audience sandgate or a certificate of a signer sandgate.dev/* makes its holder the gate; choose another"
- expression: "!has(object.spec.resources) || !has(object.spec.resources.limits) || object.spec.resources.limits.all(name, !(name in ['cpu', 'memory']))"
  message: {{ include "sandgate.podLimitsMessage" . }}
- expression: "object.metadata.name.size() <= 63 && object.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')"
  message: "metadata.name: it can't name a sandbox; use lower-case letters, digits and inner hyphens, at most 63 characters, no dots"
{{- if eq .Values.injection.lockdown "enabled" }}
- expression: >-
    !has(object.spec.runtimeClassName) || object.spec.runtimeClassName in {{ include "sandgate.cel" .Values.injection.lockdownRuntimeClasses }}
  message: "spec.runtimeClassName: it isn't listed as one that obeys the pod's network rules; remove it, or have the operator list it (injection.lockdownRuntimeClasses)"
{{- end }}
{{ include "sandgate.containerRules" (dict "list" "variables.others" "place" "spec.containers[*]") }}
{{ include "sandgate.handlerRules" . }}
{{- if eq .Values.injection.lockdown "enabled" }}
- expression: >-
    variables.others.all(c, {{ include "sandgate.dropsNetRaw" . }})
  message: "spec.containers[*].securityContext.capabilities.drop: with NET_RAW it could go around the pod's closed network; is the injector running? It drops NET_RAW"
{{- end }}
{{- end }}

{{/* Of limits that the gate would share with the sandbox: the kernel could end it, and its ports be anybody's for a while. */}}
{{- define "sandgate.podLimitsMessage" -}}
"spec.resources.limits: the sandbox could use up what the gate needs of it; limit each container instead"
{{- end }}

{{/* Rules for every container of a list: (dict "list" CEL "place" …) */}}
{{- define "sandgate.containerRules" -}}
- expression: >-
    {{ .list }}.all(c, !(c.name in {{ include "sandgate.ownContainers" . }}))
  message: "{{ .place }}.name: sandgate and sandgate-lockdown are the gate's own names; choose another"
- expression: "{{ .list }}.all(c, !has(c.securityContext) || !has(c.securityContext.windowsOptions))"
  message: "{{ .place }}.securityContext.windowsOptions: the gate runs on Linux only; remove it"
- expression: "{{ .list }}.all(c, !has(c.ports) || c.ports.all(p, !has(p.hostPort) || p.hostPort == 0))"
  message: "{{ .place }}.ports[*].hostPort: a port of the node leads past the gate; remove it, callers come through the router"
- expression: "{{ .list }}.all(c, !has(c.securityContext) || !has(c.securityContext.privileged) || !c.securityContext.privileged)"
  message: "{{ .place }}.securityContext.privileged: a privileged container owns its node, and every gate's key on it; remove it"
- expression: >-
    {{ .list }}.all(c, !has(c.securityContext) || !has(c.securityContext.capabilities) || !has(c.securityContext.capabilities.add) ||
    c.securityContext.capabilities.add.all(a, a.upperAscii() in {{ include "sandgate.capabilities" . }}))
  message: "{{ .place }}.securityContext.capabilities.add: it adds a capability that a sandbox may not have; remove it"
- expression: >-
    {{ .list }}.all(c, !has(c.securityContext) || ({{ include "sandgate.confined" "c.securityContext" }}))
  message: "{{ .place }}.securityContext: its seccompProfile, appArmorProfile or seLinuxOptions leave what confines a sandbox; remove them, or choose RuntimeDefault, Localhost or container_t"
- expression: "{{ .list }}.all(c, !has(c.securityContext) || !has(c.securityContext.procMount) || c.securityContext.procMount == 'Default')"
  message: "{{ .place }}.securityContext.procMount: an unmasked /proc shows and changes what belongs to the node; remove it"
- expression: "{{ .list }}.all(c, !has(c.volumeDevices) || c.volumeDevices.size() == 0)"
  message: "{{ .place }}.volumeDevices: a raw block device may hold the node's files; mount the volume as a file system (volumeMounts)"
- expression: >-
    {{ .list }}.all(c, !has(c.securityContext) || ((!has(c.securityContext.runAsUser) || c.securityContext.runAsUser != 2102) &&
    (!has(c.securityContext.runAsGroup) || c.securityContext.runAsGroup != 2102)))
  message: "{{ .place }}.securityContext: 2102 is the gate's user and group; choose another number"
- expression: >-
    {{ .list }}.all(c, !has(c.ports) || c.ports.all(p, !(p.containerPort in [14443, 14480]) &&
    !(has(p.name) && p.name in ['sandgate-mesh', 'sandgate-health'])))
  message: "{{ .place }}.ports: 14443, 14480, sandgate-mesh and sandgate-health are the gate's; choose another port for the sandbox"
- expression: >-
    {{ .list }}.all(c, (!has(c.volumeMounts) || c.volumeMounts.all(m, !(m.name in {{ include "sandgate.ownVolumes" . }}))) &&
    (!has(c.env) || c.env.all(e, !has(e.valueFrom) || !has(e.valueFrom.fileKeyRef) || !(e.valueFrom.fileKeyRef.volumeName in {{ include "sandgate.ownVolumes" . }}))))
  message: "{{ .place }}: it uses a volume with the gate's key and token (sandgate-token, sandgate-identity, sandgate-state); use a volume of the sandbox's own"
{{- end }}

{{/* Rules for probes and hooks. The kubelet's calls are let in everywhere, so they must not go to another pod or the gate. */}}
{{- define "sandgate.handlerRules" -}}
{{- $lockdown := eq .Values.injection.lockdown "enabled" }}
{{- range $kind, $parent := dict "livenessProbe" "c" "readinessProbe" "c" "startupProbe" "c" "postStart" "c.lifecycle" "preStop" "c.lifecycle" }}
{{- $hook := eq $parent "c.lifecycle" }}
{{- $handler := printf "%s.%s" $parent $kind }}
{{- $absent := printf "!has(%s)" $handler }}
{{- if $hook }}{{ $absent = printf "!has(c.lifecycle) || %s" $absent }}{{ end }}
{{- $place := printf "spec.containers[*].%s%s" (ternary "lifecycle." "" $hook) $kind }}
- expression: >-
    variables.others.all(c, {{ $absent }} || (
    (!has({{ $handler }}.httpGet) || !has({{ $handler }}.httpGet.host) || {{ $handler }}.httpGet.host == '') &&
    (!has({{ $handler }}.tcpSocket) || !has({{ $handler }}.tcpSocket.host) || {{ $handler }}.tcpSocket.host == '')))
  message: "{{ $place }}: with a host the kubelet would call another host in this pod's name; remove it"
- expression: >-
    variables.others.all(c, {{ $absent }} || (
    {{- if not $lockdown }}
    (!has({{ $handler }}.httpGet) || !(string({{ $handler }}.httpGet.port) in ['14443', '14480'])) &&
    {{- end }}
    {{- if not $hook }}
    (!has({{ $handler }}.grpc) || !({{ $handler }}.grpc.port in [14443, 14480])) &&
    {{- end }}
    (!has({{ $handler }}.tcpSocket) || !(string({{ $handler }}.tcpSocket.port) in ['14443', '14480']))))
  message: "{{ $place }}: 14443 and 14480 are the gate's ports; choose another port for the sandbox"
{{- if $lockdown }}
- expression: >-
    variables.others.all(c, {{ $absent }} || (
    {{- if not $hook }}!has({{ $handler }}.tcpSocket) && !has({{ $handler }}.grpc) &&{{ end }}
    (!has({{ $handler }}.httpGet) || ({{ $handler }}.httpGet.port == 14480 && {{ $handler }}.httpGet.path == '/app-probe/' + c.name + '/{{ $kind }}' &&
    {{ $handler }}.httpGet.scheme == 'HTTP' && !has({{ $handler }}.httpGet.httpHeaders)))))
  message: "{{ $place }}: the pod's closed network would drop it; is the injector running? It lets the gate run it"
{{- end }}
{{- end }}
{{- end }}

{{/* CEL: whether the security context `.` keeps what confines a container. */}}
{{- define "sandgate.confined" -}}
(!has({{ . }}.seccompProfile) || {{ . }}.seccompProfile.type in ['RuntimeDefault', 'Localhost']) && (!has({{ . }}.appArmorProfile) || {{ . }}.appArmorProfile.type in ['RuntimeDefault', 'Localhost']) && (!has({{ . }}.seLinuxOptions) || ((!has({{ . }}.seLinuxOptions.user) || {{ . }}.seLinuxOptions.user == '') && (!has({{ . }}.seLinuxOptions.role) || {{ . }}.seLinuxOptions.role == '') && (!has({{ . }}.seLinuxOptions.type) || {{ . }}.seLinuxOptions.type in ['', 'container_t', 'container_init_t', 'container_kvm_t', 'container_engine_t'])))
{{- end }}

{{/* CEL: whether the container `c` gives up packet sockets, which it has by default. */}}
{{- define "sandgate.dropsNetRaw" -}}
has(c.securityContext) && has(c.securityContext.capabilities) && has(c.securityContext.capabilities.drop) && c.securityContext.capabilities.drop.exists(d, d in ['ALL', 'NET_RAW'])
{{- end }}

{{/* Every spelling of the capabilities that may be added: the baseline's, and never NET_RAW. */}}
{{- define "sandgate.capabilities" -}}
{{- $all := list }}
{{- range list "AUDIT_WRITE" "CHOWN" "DAC_OVERRIDE" "FOWNER" "FSETID" "KILL" "MKNOD" "NET_BIND_SERVICE" "SETFCAP" "SETGID" "SETPCAP" "SETUID" "SYS_CHROOT" }}
{{- $all = concat $all (list . (printf "CAP_%s" .)) }}
{{- end }}
{{- include "sandgate.cel" $all }}
{{- end }}
