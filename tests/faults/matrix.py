"""The scenarios: every fault, where it applies, and what must hold."""

from __future__ import annotations

import signal

from tests.faults import faults_of_services as services
from tests.faults import faults_of_workers as workers
from tests.faults.scenario import BROKERS, SQS_S3, Scenario
from tests.faults.traffic import Load
from tests.faults.workers import faketime_library

PREFORK = ("prefork",)
NO_SQS = ("redis", "amqp")
ALSO_S3 = (*BROKERS, SQS_S3)
#: Three times the harness' visibility timeout.
LONG_TASK = {"sleep_s": 9.0}
#: The nemesis itself sends what it needs.
NO_OTHERS = Load(per_s=0)


def _no_faketime() -> str | None:
    return None if faketime_library() else "no libfaketime: apt-get install faketime"


_WORKERS = (
    Scenario(
        name="worker-killed",
        guarantee="kill -9 of a worker and its children loses nothing",
        nemesis=workers.worker_killed,
        short=("redis/gevent", "amqp/prefork"),
        sabotage="acks_at_the_start",
    ),
    Scenario(
        name="main-process-killed",
        guarantee="kill -9 of the main process alone loses nothing, and its children pay for nothing more",
        nemesis=workers.main_process_killed,
        pools=PREFORK,
        load=Load(burst=4, per_s=2.0, behaviour={"sleep_s": 1.5}),
        sabotage="acks_at_the_start",
    ),
    Scenario(
        name="idle-peer-takes-over",
        guarantee="an idle peer takes a dead worker's tasks over within visibility timeout + 10 s",
        nemesis=workers.peer_killed,
        workers=2,
        load=Load(burst=8, per_s=0, behaviour={"sleep_s": 1.5}),
        recovery_s=16.0,  # the timeout of 3 s, the 10 s, and the tasks themselves
        sabotage="acks_at_the_start",
        short=("redis/gevent", "sqs/gevent"),
    ),
    Scenario(
        name="child-killed",
        guarantee="kill -9 of prefork children loses nothing",
        nemesis=workers.child_killed,
        pools=PREFORK,
        load=Load(per_s=6.0, behaviour={"sleep_s": 0.5}),
        short=("redis/prefork",),
        sabotage="acks_what_a_lost_child_held",
    ),
    Scenario(
        name="sigterm",
        guarantee="a worker that is told to stop finishes or hands back what it holds",
        nemesis=workers.told_to_stop,
    ),
    Scenario(
        name="sigterm-with-long-tasks",
        guarantee="what outlasts the drain is handed back and done elsewhere",
        nemesis=workers.told_in_long_tasks(signal.SIGTERM),
        load=NO_OTHERS,
        short=("redis/prefork", "amqp/gevent"),
    ),
    Scenario(
        name="sigterm-twice",
        guarantee="a second SIGTERM ends the drain and loses nothing",
        nemesis=workers.told_to_stop_twice,
        load=Load(burst=4, per_s=3.0, behaviour={"sleep_s": 2.0}),
        recovery_s=40.0,
    ),
    Scenario(
        name="sigquit",
        guarantee="SIGQUIT hands back at once and loses nothing",
        nemesis=workers.told_in_long_tasks(signal.SIGQUIT),
        load=NO_OTHERS,
        short=("redis/gevent",),
    ),
    Scenario(
        name="poison",
        guarantee="a task that kills its worker ends as a failure in the dead letters; the others go on",
        nemesis=workers.poison,
        pools=PREFORK,
        load=Load(per_s=4.0),
        settings={"FORWARDER_MAX_DELIVERIES": "2"},
        recovery_s=40.0,
        short=("redis/prefork",),
    ),
    Scenario(
        name="poison-among-greenlets",
        guarantee="a task that kills its worker ends in the dead letters, with at worst those beside it",
        nemesis=workers.poison,
        pools=("gevent",),
        load=Load(per_s=4.0),
        settings={"FORWARDER_MAX_DELIVERIES": "2"},
        expect="any",  # whoever was in flight beside it was delivered as often
        recovery_s=40.0,
    ),
    Scenario(
        name="descriptors-exhausted",
        guarantee="a worker that can open nothing for a while loses nothing",
        nemesis=workers.descriptors_exhausted,
        short=("redis/gevent",),
    ),
    Scenario(
        name="clock-ahead",
        guarantee="a worker whose clock is an hour ahead takes nothing from the others",
        nemesis=workers.clock_ahead,
        load=Load(per_s=8.0, behaviour={"sleep_s": 0.8}),
        repeats_max=0,
        lacks=_no_faketime,
        short=("redis/gevent",),
    ),
    Scenario(
        name="clock-behind",
        guarantee="a worker whose clock is an hour behind keeps nothing for an hour",
        nemesis=workers.clock_behind,
        load=Load(per_s=8.0, behaviour={"sleep_s": 0.8}),
        repeats_max=0,
        lacks=_no_faketime,
    ),
    Scenario(
        name="long-task",
        guarantee="a task three times as long as the visibility timeout runs once",
        nemesis=workers.nothing,
        load=Load(burst=4, per_s=0, behaviour=LONG_TASK),
        workers=2,
        repeats_max=0,
        short=("redis/prefork", "sqs/gevent"),
    ),
)

_RESULTS = (
    Scenario(
        name="results-killed",
        guarantee="a result store that is away for a while costs no inference call",
        nemesis=services.results_killed(5.0),
        load=Load(per_s=10.0, behaviour={"sleep_s": 0.3}),
        places=ALSO_S3,
        repeats_max=0,
        short=("redis/gevent", "sqs+s3/gevent"),
        sabotage="does_not_wait_for_the_store",
    ),
    Scenario(
        name="results-away-long",
        guarantee="what can't be stored within the bound goes back to the queue; work goes on by itself",
        nemesis=services.results_killed(6.0),
        places=ALSO_S3,
        settings={"FORWARDER_STORE_RETRY_S": "2"},
        short=("redis/prefork", "redis/gevent"),
    ),
    Scenario(
        name="results-frozen",
        guarantee="a result store that hangs for a while loses nothing",
        nemesis=services.results_frozen,
        places=ALSO_S3,
    ),
    Scenario(
        name="results-disk-full",
        guarantee="a result store that refuses writes for a while loses nothing",
        nemesis=services.results_disk_full,
        short=("redis/prefork",),
    ),
)

_BROKER = (
    Scenario(
        name="broker-killed",
        guarantee="a broker that comes back with its data loses nothing, and running tasks finish",
        nemesis=services.broker_killed,
        places=NO_SQS,
        short=("redis/prefork",),
    ),
    Scenario(
        name="broker-wiped",
        guarantee="what runs while Redis loses its data still gets its result; on all the worker goes on",
        nemesis=services.broker_wiped,
        sabotage="drops_what_runs_when_cut_off",
        places=NO_SQS,
        short=("redis/gevent",),
    ),
    Scenario(
        name="broker-frozen",
        guarantee="a broker that hangs for longer than a lease lasts loses nothing",
        nemesis=services.broker_frozen,
    ),
    Scenario(
        name="broker-disk-full",
        guarantee="a broker that refuses writes, acks included, for a while loses nothing",
        nemesis=services.broker_disk_full,
        places=("redis",),
    ),
    Scenario(
        name="link-cut",
        guarantee="cut broker connections lose nothing; the worker comes back by itself",
        nemesis=services.link_cut,
        short=("amqp/gevent", "redis/prefork"),
    ),
    Scenario(
        name="link-frozen",
        guarantee="a silent network between worker and broker loses nothing",
        nemesis=services.link_frozen,
        sabotage="ends_when_it_can_not_settle",
        short=("redis/gevent",),
    ),
    Scenario(
        name="link-half-open",
        guarantee="connections that the network forgot are noticed",
        nemesis=services.link_half_open,
        recovery_s=40.0,
    ),
)

_MODEL = tuple(
    Scenario(
        name=name,
        guarantee=guarantee,
        nemesis=nemesis,
        expect="success" if name not in ("model-garbage", "model-cut") else "any",
        recovery_s=40.0,
        short=short,
        sabotage="gives_up_on_the_inference_server" if name == "model-killed" else "",
    )
    for name, guarantee, nemesis, short in (
        (
            "model-killed",
            "an inference server that dies in the middle of answers is asked again when it is back",
            services.model_killed,
            ("redis/gevent", "sqs/prefork"),
        ),
        (
            "model-busy",
            "503 with Retry-After is waited out",
            services.model_answers(status=503, retry_after=1),
            (),
        ),
        ("model-slow", "slow answers lose nothing", services.model_answers(sleep_s=2.0), ()),
        ("model-trickles", "answers byte by byte lose nothing", services.model_answers(trickle_s=0.02), ()),
        (
            "model-garbage",
            "answers that are no JSON have an outcome",
            services.model_answers(answer="html"),
            (),
        ),
        ("model-cut", "answers that end half-way have an outcome", services.model_answers(cut=True), ()),
    )
)

_MESSAGES = (
    Scenario(
        name="bad-messages",
        guarantee="what is malformed, unknown or too large is put aside; the worker goes on",
        nemesis=services.bad_messages,
        settings={"FORWARDER_MESSAGE_BYTES_MAX": "100000"},
        short=("redis/gevent", "amqp/prefork", "sqs/gevent"),
    ),
    Scenario(
        name="duplicates",
        guarantee="an id that is sent again after its commit costs no inference call",
        nemesis=services.duplicates,
        short=("redis/prefork",),
    ),
)

SCENARIOS: tuple[Scenario, ...] = (*_WORKERS, *_RESULTS, *_BROKER, *_MODEL, *_MESSAGES)
