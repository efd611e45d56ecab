{{/*
By HTTP, or by a command in the container, which needs no way into the pod but knows no readiness: such a
pod counts as ready once it lives. /livez answers while the worker still waits for a model that loads, so
nothing here grows with the model's size.
*/}}
{{- define "forwarder.probes" -}}
{{- $live := dict "httpGet" (dict "path" "/livez" "port" "metrics") -}}
{{- if eq .Values.probes.kind "exec" -}}
{{- $live = dict "exec" (dict "command" (list "forwarder" "check" "--live")) -}}
{{- end -}}
startupProbe:
  {{- toYaml $live | nindent 2 }}
  periodSeconds: 2
  timeoutSeconds: {{ .Values.probes.timeoutSeconds }}
  failureThreshold: 60
livenessProbe:
  {{- toYaml $live | nindent 2 }}
  periodSeconds: 15
  timeoutSeconds: {{ .Values.probes.timeoutSeconds }}
  failureThreshold: 3
  # What hangs needs no drain, which may be an hour long.
  terminationGracePeriodSeconds: 30
{{- if eq .Values.probes.kind "http" }}
readinessProbe:
  httpGet: {path: /readyz, port: metrics}
  periodSeconds: 5
  timeoutSeconds: {{ .Values.probes.timeoutSeconds }}
  failureThreshold: 2
{{- end }}
{{- end -}}
