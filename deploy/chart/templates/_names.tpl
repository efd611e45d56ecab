{{/* The name of every object of a release. */}}
{{- define "forwarder.name" -}}
{{- .Values.fullnameOverride | default (contains "forwarder" .Release.Name | ternary .Release.Name (printf "%s-forwarder" .Release.Name)) | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{/* What selects the pods; it can't be changed after the first install. */}}
{{- define "forwarder.selector" -}}
app.kubernetes.io/name: forwarder
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "forwarder.labels" -}}
{{ include "forwarder.selector" . }}
app.kubernetes.io/version: {{ include "forwarder.version" . | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* As a label's value: letters, digits, dots and dashes. */}}
{{- define "forwarder.version" -}}
{{- regexReplaceAll "[^A-Za-z0-9_.-]" (.Values.image.tag | default .Chart.AppVersion) "-" | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Datadog's unified service tags, where its admission and its agent look for them. */}}
{{- define "forwarder.datadogLabels" -}}
{{- if .Values.datadog.enabled -}}
tags.datadoghq.com/service: {{ .Values.datadog.service | default (include "forwarder.name" .) | quote }}
tags.datadoghq.com/version: {{ include "forwarder.version" . | quote }}
{{- with .Values.datadog.env }}
tags.datadoghq.com/env: {{ . | quote }}
{{- end }}
{{- end -}}
{{- end -}}

{{- define "forwarder.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (.Values.serviceAccount.create | ternary (include "forwarder.name" .) "default") -}}
{{- end -}}

{{/* Seconds between the order to stop and the worker's end: 9 at most are its own, after its drain. */}}
{{- define "forwarder.graceSeconds" -}}
{{- add (int64 .Values.drainSeconds) 15 -}}
{{- end -}}

{{/* A model beside it is stopped only then, and has its own seconds in the pod's grace period. */}}
{{- define "forwarder.podGraceSeconds" -}}
{{- add (include "forwarder.graceSeconds" . | int64) (.Values.model.enabled | ternary (int64 .Values.model.stopSeconds) 0) -}}
{{- end -}}
