"""Settings of the pool and of its memory."""

from __future__ import annotations

from forwarder.settings import kinds
from forwarder.settings.model import AUTO_SLOTS_MAX
from forwarder.settings.spec import Spec

POOL = (
    Spec(
        "pool",
        "--pool",
        "CELERY_WORKER_POOL",
        kinds.choice("prefork", "gevent"),
        "Processes (prefork) or greenlets (gevent).",
    ),
    Spec(
        "concurrency",
        "--concurrency",
        "FORWARDER_CONCURRENCY",
        kinds.whole_number(1, 10_000),
        "Number of tasks worked on at the same time. A slot costs up to five times the bytes of its "
        "message and response, and a connection to each service; on prefork a process of 24 MiB as well.",
        other_flags=("--num-workers",),
    ),
    Spec(
        "max_tasks_per_child",
        "--max-tasks-per-child",
        "CELERY_WORKER_MAX_TASKS_PER_CHILD",
        kinds.whole_number(1, 1_000_000_000),
        "Number of tasks after which a prefork process is replaced; a bad value counts as off.",
        gentle=True,
        default_words="off",
    ),
    Spec(
        "max_memory_per_child_mb",
        "--max-memory-per-child-mb",
        "FORWARDER_MAX_MEMORY_PER_CHILD_MB",
        kinds.whole_number(1, 100_000_000),
        "Memory in MB (2^20 bytes) that a prefork process may have had resident at its peak, what it shares "
        "included; with more it is replaced after its task.",
        default_words="off; with --autoscale, what each of MIN processes may have",
    ),
    Spec(
        "drain_timeout_s",
        "--drain-timeout",
        "FORWARDER_DRAIN_TIMEOUT_S",
        kinds.seconds(kinds.WEEK_S),
        "Seconds that running tasks are given to finish when the worker is told to stop. What still runs "
        "then goes back to the queue, and its inference call is made again.",
    ),
    Spec(
        "termination_grace_s",
        "--termination-grace",
        "FORWARDER_TERMINATION_GRACE_S",
        kinds.seconds(kinds.WEEK_S),
        "Seconds between the order to stop and the kill: Kubernetes' terminationGracePeriodSeconds, less "
        "what a preStop hook takes. Only compared with the drain timeout.",
        default_words="not compared",
    ),
    Spec(
        "autoscale",
        "--autoscale",
        "FORWARDER_AUTOSCALE",
        kinds.AUTOSCALE,
        "Largest and smallest size of the pool; with it --concurrency has no effect. Prefork starts with MIN "
        "processes and grows as far as memory allows.",
        default_words="off",
    ),
    Spec(
        "auto",
        "--auto",
        "FORWARDER_AUTO",
        kinds.BOOLEAN,
        "Measure the first tasks at work, choose MAX of --autoscale and --stage-above-bytes by them, and do "
        "so again when sizes or times change fourfold. Never above the MAX that is given, never below MIN; "
        f"without --autoscale these are {AUTO_SLOTS_MAX} and --concurrency.",
    ),
    Spec(
        "autoscale_step",
        "--autoscale-step",
        "FORWARDER_AUTOSCALE_STEP",
        kinds.whole_number(1, 10_000),
        "Number of prefork processes that are started at a time; the worker takes no message meanwhile, "
        "some 10 ms for each.",
    ),
    Spec(
        "autoscale_idle_s",
        "--autoscale-idle",
        "FORWARDER_AUTOSCALE_IDLE_S",
        kinds.seconds(kinds.WEEK_S),
        "Seconds for which two or more prefork processes have been idle before one of them is ended.",
    ),
    Spec(
        "memory_low_percent",
        "--memory-low-percent",
        "FORWARDER_MEMORY_LOW_PERCENT",
        kinds.whole_number(1, 100),
        "Part of the memory limit in percent from which on the pool no longer grows.",
    ),
    Spec(
        "memory_high_percent",
        "--memory-high-percent",
        "FORWARDER_MEMORY_HIGH_PERCENT",
        kinds.whole_number(20, 100),
        "Part of the memory limit in percent above which the pool shrinks; it is never given more processes "
        "than fit below.",
    ),
    Spec(
        "memory_limit_mb",
        "--memory-limit-mb",
        "FORWARDER_MEMORY_LIMIT_MB",
        kinds.whole_number(1, 100_000_000),
        "Memory in MB (2^20 bytes) that the worker may fill.",
        other_environ=("CONTAINER_MEMORY_MB",),
        default_words="the container's own limit",
    ),
    Spec(
        "worker_rss_mb",
        "--worker-rss-mb",
        "FORWARDER_WORKER_RSS_MB",
        kinds.whole_number(1, 100_000_000),
        "Memory in MB (2^20 bytes) that one more prefork process needs.",
        other_environ=("EST_WORKER_RSS_MB",),
        default_words="measured",
    ),
)
