"""Every setting, once: field, flag, environment name, kind, meaning.

The command line's options, ``--help``, ``.env.example`` and
``docs/settings.md`` are all made from this table.
"""

from __future__ import annotations

from collections.abc import Mapping

from forwarder.settings.spec import Spec
from forwarder.settings.specs.around import ENDPOINT, HOOKS, OPERATION
from forwarder.settings.specs.broker import BROKER
from forwarder.settings.specs.inference import INFERENCE, LARGE_BODIES
from forwarder.settings.specs.pool import POOL

GROUPS: Mapping[str, tuple[Spec, ...]] = {
    "Broker and results": BROKER,
    "Pool": POOL,
    "Inference server": INFERENCE,
    "Large bodies": LARGE_BODIES,
    "Hooks": HOOKS,
    "Endpoint identity": ENDPOINT,
    "Operation": OPERATION,
}

SPECS: tuple[Spec, ...] = tuple(spec for group in GROUPS.values() for spec in group)

BY_FIELD: Mapping[str, Spec] = {spec.field: spec for spec in SPECS}
