{{/* A value as text: numbers come as floating-point ones, and a large one would be written 4.2e+09. */}}
{{- define "forwarder.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}{{ int64 . }}{{- else -}}{{ . }}{{- end -}}
{{- end -}}

{{/* The worker's settings. What a value of the chart decides stands here once; the rest is `settings`. */}}
{{- define "forwarder.environment" -}}
{{- $settings := dict
  "FORWARDER_QUEUES" (join "," .Values.queues)
  "CELERY_WORKER_POOL" .Values.pool
  "FORWARDER_CONCURRENCY" .Values.concurrency
  "FORWARDER_PREDICT_URL" .Values.predictUrl
  "FORWARDER_HEALTH_URL" .Values.healthUrl
  "FORWARDER_DRAIN_TIMEOUT_S" .Values.drainSeconds
  "FORWARDER_TERMINATION_GRACE_S" (include "forwarder.graceSeconds" .)
  "FORWARDER_HTTP_PORT" .Values.http.port
  "FORWARDER_STAGE_FOLDER" "/tmp"
  "FORWARDER_STAGE_BYTES_MAX" .Values.stageBytes
-}}
{{- if eq .Values.broker.kind "sqs" -}}
{{- $settings = merge $settings (dict "FORWARDER_BROKER_URL" "sqs://" "FORWARDER_SQS_QUEUE_URL" .Values.broker.sqsQueueUrl) -}}
{{- else if .Values.broker.url -}}
{{- $settings = set $settings "FORWARDER_BROKER_URL" .Values.broker.url -}}
{{- end -}}
{{- with .Values.results.url -}}
{{- $settings = set $settings "FORWARDER_RESULT_BACKEND" . -}}
{{- end -}}
{{- with .Values.aws.region -}}
{{- $settings = set $settings "AWS_REGION" . -}}
{{- end -}}
{{- range $name, $value := merge $settings .Values.settings }}
- name: {{ $name }}
  value: {{ include "forwarder.text" $value | quote }}
{{- end }}
{{- end -}}

{{/*
The agent is a daemon on each node; its tags come from the pod's labels. By default it adds none that tells two
pods of a Deployment apart, and would keep only one of their gauges: so the worker names its pod itself.
*/}}
{{- define "forwarder.datadogEnvironment" -}}
- name: DD_AGENT_HOST
  valueFrom: {fieldRef: {fieldPath: status.hostIP}}
{{- if .Values.datadog.trace }}
- name: FORWARDER_DDTRACE
  value: "1"
{{- end }}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: DATADOG_TAGS
  value: pod_name:$(POD_NAME)
- name: DD_ENTITY_ID
  valueFrom: {fieldRef: {fieldPath: metadata.uid}}
- name: DD_SERVICE
  valueFrom: {fieldRef: {fieldPath: "metadata.labels['tags.datadoghq.com/service']"}}
- name: DD_VERSION
  valueFrom: {fieldRef: {fieldPath: "metadata.labels['tags.datadoghq.com/version']"}}
{{- if .Values.datadog.env }}
- name: DD_ENV
  valueFrom: {fieldRef: {fieldPath: "metadata.labels['tags.datadoghq.com/env']"}}
{{- end }}
{{- end -}}
