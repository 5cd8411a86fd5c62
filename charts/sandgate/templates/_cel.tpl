{{/* A value as a CEL literal. CEL wants the members of a map to be of one type, unless it is told otherwise. */}}
{{- define "sandgate.cel" -}}
{{- if kindIs "map" . -}}
{ {{- range $index, $key := keys . | sortAlpha }}{{ if $index }}, {{ end }}{{ toJson $key }}: dyn({{ include "sandgate.cel" (get $ $key) }}){{ end -}} }
{{- else if kindIs "slice" . -}}
[{{ range $index, $item := . }}{{ if $index }}, {{ end }}{{ include "sandgate.cel" $item }}{{ end }}]
{{- else -}}
{{ toJson . }}
{{- end -}}
{{- end }}

{{/* The `validations` of a policy from a YAML list of expressions and messages. Refusals look like the webhook's own. */}}
{{- define "sandgate.validations" -}}
{{- range $index, $rule := fromYamlArray . }}
{{- if $index }}
{{ end }}- expression: >-
    {{- $rule.expression | nindent 4 }}
  message: {{ toJson $rule.message }}
  reason: Forbidden
{{- end }}
{{- end }}

{{- define "sandgate.binding" -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
{{ include "sandgate.metadata" (dict "root" .root "component" "admission-policy" "clusterScoped" true "name" .name) }}
spec:
  policyName: {{ .name }}
  validationActions: [Deny]
{{- end }}

{{/* CEL: whether a kubelet asks. API servers let nobody else have both, unless somebody may impersonate it. */}}
{{- define "sandgate.byKubelet" -}}
request.userInfo.username.startsWith('system:node:') && has(request.userInfo.groups) && 'system:nodes' in request.userInfo.groups
{{- end }}

{{/* The namespaces in which pods are gated. */}}
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
