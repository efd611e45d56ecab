{{/*
One pod for so many tasks. What runs is counted with what waits: by what waits alone a pod that has just
taken the last task would not be needed any more, and would be stopped in the middle of it.
*/}}
{{- define "forwarder.tasksPerPod" -}}
{{- .Values.scaling.tasksPerPod | default .Values.concurrency | int64 -}}
{{- end -}}

{{- define "forwarder.behavior" -}}
scaleDown:
  stabilizationWindowSeconds: {{ .Values.scaling.scaleDownWindowSeconds }}
{{- end -}}

{{/* What KEDA's triggers on a Redis list have in common: where the server is. */}}
{{- define "forwarder.redisServer" -}}
{{- if .Values.scaling.redis.address -}}
address: {{ .Values.scaling.redis.address }}
databaseIndex: {{ .Values.scaling.redis.database | quote }}
enableTLS: {{ .Values.scaling.redis.tls | quote }}
{{- else -}}
{{- $url := urlParse .Values.broker.url -}}
address: {{ contains ":" (regexReplaceAll "^\\[.*\\]" $url.host "") | ternary $url.host (printf "%s:6379" $url.host) | quote }}
databaseIndex: {{ trimPrefix "/" $url.path | default "0" | quote }}
enableTLS: {{ eq $url.scheme "rediss" | quote }}
{{- end -}}
{{- end -}}

{{/* The metadata of KEDA's triggers, a list under the key `triggers`: all that waits or runs, each message once. */}}
{{- define "forwarder.triggers" -}}
{{- $target := include "forwarder.tasksPerPod" . -}}
{{- $triggers := list -}}
{{- range $queue := .Values.queues -}}
  {{- if eq $.Values.broker.kind "redis" -}}
    {{- $server := include "forwarder.redisServer" $ | fromYaml -}}
    {{- /* The lists of kombu, one for each step of priority, and the leases of what runs: a sorted set. */ -}}
    {{- $lists := list $queue -}}
    {{- if $.Values.scaling.redis.priorities -}}
      {{- range list "3" "6" "9" -}}{{- $lists = append $lists (printf "%s\x06\x16%s" $queue .) -}}{{- end -}}
    {{- end -}}
    {{- range append $lists (printf "forwarder:{%s}:leases" $queue) -}}
      {{- $triggers = append $triggers (merge (dict "listName" . "listLength" $target) $server) -}}
    {{- end -}}
  {{- else if eq $.Values.broker.kind "rabbitmq" -}}
    {{- /* Over HTTP, because AMQP doesn't tell what is unacknowledged. */ -}}
    {{- $triggers = append $triggers (dict "protocol" "http" "queueName" $queue "mode" "QueueLength" "value" $target "excludeUnacknowledged" "false") -}}
  {{- else -}}
    {{- $triggers = append $triggers (dict "queueURL" $.Values.broker.sqsQueueUrl "queueLength" $target "awsRegion" $.Values.aws.region "scaleOnInFlight" "true") -}}
  {{- end -}}
{{- end -}}
{{- toYaml (dict "triggers" $triggers) -}}
{{- end -}}
