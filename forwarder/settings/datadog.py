"""Datadog's own variables, as far as the worker goes by them; Datadog's client reads the rest of them."""

from __future__ import annotations

import os
from collections.abc import Mapping

#: Either names an agent; the client takes the second one where both are set, and ``DD_DOGSTATSD_PORT``.
#: https://docs.datadoghq.com/developers/dogstatsd/?tab=hostagent#client-instantiation-parameters
AGENT_VARIABLES = ("DD_AGENT_HOST", "DD_DOGSTATSD_URL")


def dogstatsd_is_on(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether DogStatsD gets the worker's metrics: whether a variable names its agent."""
    return any(environ.get(name) for name in AGENT_VARIABLES)
