"""Beats and progress, by a clock of the test's own."""

from __future__ import annotations

from forwarder.telemetry.liveness import Beat, Liveness, Progress


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Work:
    """What a worker has to do."""

    def __init__(self, clock: Clock, stall_s: float = 10.0) -> None:
        self.ended = 0
        self.is_there = False
        self.age_s = 0.0
        self.progress = Progress(
            ended=lambda: self.ended,
            work_age_s=lambda: self.age_s if self.is_there else None,
            stall_s=stall_s,
            monotonic=clock,
        )


def beat(clock: Clock, reason: str = "loop") -> Beat:
    return Beat(reason, every_s=1.0, still_s=30.0, monotonic=clock)


def test_a_beat_that_has_not_begun_is_not_missed() -> None:
    clock = Clock()
    loop = beat(clock)
    clock.now_s += 1000
    assert not loop.still
    assert not loop.turning


def test_a_beat_that_stays_away_for_too_long_is_missed_until_it_comes() -> None:
    clock = Clock()
    loop = beat(clock)
    loop()
    clock.now_s += 30
    assert not loop.still
    clock.now_s += 1
    assert loop.still
    loop()
    assert not loop.still


def test_a_paused_beat_is_not_missed_until_it_has_come_again() -> None:
    clock = Clock()
    loop = beat(clock)
    loop()
    loop.pause()
    clock.now_s += 1000
    assert not loop.still
    assert not loop.turning
    loop()
    clock.now_s += 31
    assert loop.still


def test_how_late_a_beat_is_is_that_of_the_last_turn_or_of_the_one_that_is_due() -> None:
    clock = Clock()
    loop = beat(clock)
    loop()
    clock.now_s += 1
    loop()
    assert loop.late_s == 0
    clock.now_s += 5
    assert loop.late_s == 4
    loop()
    assert loop.late_s == 4
    clock.now_s += 1
    loop()
    assert loop.late_s == 0


def test_work_of_which_none_ends_stalls() -> None:
    clock = Clock()
    work = Work(clock)
    work.is_there = True
    assert not work.progress.stalled
    clock.now_s += 10
    assert not work.progress.stalled
    clock.now_s += 1
    assert work.progress.stalled


def test_the_time_runs_from_the_look_that_saw_the_work_not_from_the_last_end() -> None:
    """An idle worker's last task ended long ago; its next one has the whole time."""
    clock = Clock()
    work = Work(clock)
    assert not work.progress.stalled
    clock.now_s += 1000
    work.is_there = True
    assert not work.progress.stalled
    clock.now_s += 9
    assert not work.progress.stalled


def test_each_end_gives_the_others_the_whole_time_again() -> None:
    clock = Clock()
    work = Work(clock)
    work.is_there = True
    for _ in range(5):
        assert not work.progress.stalled
        clock.now_s += 9
        work.ended += 1
    assert not work.progress.stalled


def test_time_without_work_or_without_the_services_does_not_count() -> None:
    clock = Clock()
    work = Work(clock)
    work.is_there = True
    assert not work.progress.stalled
    clock.now_s += 9
    work.is_there = False
    assert not work.progress.stalled
    clock.now_s += 9
    work.is_there = True
    assert not work.progress.stalled


def test_what_was_seen_to_wait_before_the_last_end_stalls_nothing() -> None:
    """The look at the queue may be older than the time in which a task must end."""
    clock = Clock()
    work = Work(clock)
    work.is_there = True
    assert not work.progress.stalled
    for work.age_s in (20.0, 40.0):  # nobody has looked since
        clock.now_s += 20
        assert work.progress.look() == 0
    clock.now_s += 5
    work.age_s = 0.0
    assert work.progress.stalled


def liveness(clock: Clock, work: Work, beats: list[Beat], *, draining: bool = False) -> Liveness:
    return Liveness(beats=beats, progress=work.progress, draining=lambda: draining)


def test_every_reason_is_told() -> None:
    clock = Clock()
    work, beats = Work(clock), [beat(clock, "loop"), beat(clock, "hub"), beat(clock, "leases")]
    for each in beats:
        each()
    work.is_there = True
    live = liveness(clock, work, beats)
    assert live.reasons() == ()
    clock.now_s += 31
    beats[1]()
    assert live.reasons() == ("loop", "leases", "stalled")


def test_a_worker_that_drains_is_alive() -> None:
    clock = Clock()
    work, loop = Work(clock), beat(clock)
    loop()
    work.is_there = True
    live = liveness(clock, work, [loop], draining=True)
    assert live.reasons() == ()
    clock.now_s += 1000
    assert live.reasons() == ()
