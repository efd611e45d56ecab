"""What the chart may write of kinds that Kubernetes itself does not have.

From KEDA's and the Prometheus operator's definitions: keda.sh/v1alpha1 with its scalers' pages, and
monitoring.coreos.com/v1. Only what the chart uses; anything else is an error.
"""

from __future__ import annotations

from typing import Any

STRING = {"type": "string", "minLength": 1}
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}


def whole(least: int = 0) -> dict[str, Any]:
    return {"type": "integer", "minimum": least}


def closed(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    """Return the schema of an object with these properties and no others."""
    return {
        "type": "object",
        "properties": required | optional,
        "required": list(required),
        "additionalProperties": False,
    }


def listed(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


def kind(api_version: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = closed({"name": STRING, "labels": STRINGS})
    return closed(
        {"apiVersion": {"const": api_version}, "kind": {"const": name}, "metadata": metadata, "spec": spec}
    )


#: KEDA takes numbers in a trigger's metadata as text, and reads it only when it runs.
NUMBER = {"type": "string", "pattern": "^[0-9]+$"}
TRUTH = {"enum": ["true", "false"]}

#: https://keda.sh/docs/latest/scalers/
TRIGGERS = {
    "redis": closed(
        {
            "address": {"type": "string", "pattern": "^[^:/@]+:[0-9]+$"},
            "listName": STRING,
            "listLength": NUMBER,
            "databaseIndex": NUMBER,
            "enableTLS": TRUTH,
        }
    ),
    "rabbitmq": closed(
        {
            "protocol": {"const": "http"},
            "queueName": STRING,
            "mode": {"const": "QueueLength"},
            "value": NUMBER,
            "excludeUnacknowledged": {"const": "false"},
        }
    ),
    "aws-sqs-queue": closed(
        {
            "queueURL": {"type": "string", "pattern": "^https?://"},
            "queueLength": NUMBER,
            "awsRegion": STRING,
            "scaleOnInFlight": {"const": "true"},
        }
    ),
}


def trigger(type_name: str, metadata: dict[str, Any]) -> dict[str, Any]:
    name = {"type": "string", "pattern": "^[a-z][a-z0-9]*$"}
    return closed(
        {"type": {"const": type_name}, "name": name, "metadata": metadata},
        authenticationRef=closed({"name": STRING}),
    )


CUSTOM_KINDS: dict[str, dict[str, Any]] = {
    "ScaledObject": kind(
        "keda.sh/v1alpha1",
        "ScaledObject",
        closed(
            {
                "scaleTargetRef": closed({"name": STRING}),
                "minReplicaCount": whole(),
                "maxReplicaCount": whole(1),
                "pollingInterval": whole(1),
                "cooldownPeriod": whole(),
                "advanced": closed(
                    {"horizontalPodAutoscalerConfig": closed({"behavior": {"type": "object"}})},
                    scalingModifiers=closed(
                        {"formula": STRING, "target": NUMBER, "metricType": {"const": "AverageValue"}}
                    ),
                ),
                "triggers": listed({"anyOf": [trigger(*entry) for entry in TRIGGERS.items()]}),
            }
        ),
    ),
    "TriggerAuthentication": kind(
        "keda.sh/v1alpha1",
        "TriggerAuthentication",
        closed(
            {},
            podIdentity=closed({"provider": {"const": "aws"}}, identityOwner=STRING, roleArn=STRING),
            secretTargetRef=listed(closed({"parameter": STRING, "name": STRING, "key": STRING})),
        ),
    ),
    "PodMonitor": kind(
        "monitoring.coreos.com/v1",
        "PodMonitor",
        closed(
            {
                "selector": closed({"matchLabels": STRINGS}),
                "podTargetLabels": listed(STRING),
                "podMetricsEndpoints": listed(
                    closed({"port": STRING, "path": {"const": "/metrics"}, "interval": STRING})
                ),
            }
        ),
    ),
}
