"""The round loop, readable from top to bottom.

A run:  start workers -> choose layers -> start the server -> rounds -> personalised evaluation -> results.
A round: draw the cohort -> cut it into work groups -> train -> the server folds and steps -> evaluate -> record -> save.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator

from fedsim.core.errors import FedsimError
from fedsim.executors.base import StateLost
from fedsim.records.checkpoint import Checkpoint
from fedsim.records.round_record import RoundRecord
from fedsim.simulation.context import RunContext
from fedsim.simulation.federation import Federation
from fedsim.simulation.interrupt import RunInterrupted
from fedsim.simulation.journal import Journal
from fedsim.simulation.layer_choice import start_workers
from fedsim.simulation.recovery import Recovery
from fedsim.simulation.result import Result
from fedsim.simulation.stopping import Stop


def rounds(
    run: RunContext, checkpoint: Checkpoint | None = None, stop: Stop | None = None
) -> Generator[RoundRecord, None, Result]:
    """Run all rounds; yield each record once, when it is recorded. The generator returns the result.

    If the generator is closed early, the last recorded round is saved.

    Parameters
    ----------
    checkpoint
        Checkpoint to continue from; None starts from the beginning.
    stop
        Decides after each recorded round whether the run ends there.

    Raises
    ------
    RunInterrupted
        After a signal, once the state is saved.
    FedsimError
        On a user's mistake, a lost cluster, or a failing client (``client.on_failure: raise``).
    """
    stop = stop or Stop(run.config.rounds)
    started = time.monotonic()
    federation = Federation(run, start_workers(run.config, run.prepared, run.executor, run.progress))
    journal = Journal(run, federation, saved_round=0 if checkpoint is None else checkpoint.round, started=started)
    recovery = Recovery(run, federation, journal, checkpoint)
    try:
        while True:
            try:
                recovery.set_out()
                yield from filter(recovery.is_new, _on_record(federation, journal, stop))
                return _result(run, federation, journal, stop)
            except StateLost as loss:
                recovery.fall_back(loss)
    except (RunInterrupted, FedsimError, GeneratorExit):
        # Raised only between rounds or before a server step, where the state of the last round is complete.
        recovery.save_what_is_whole()
        raise


def _on_record(federation: Federation, journal: Journal, stop: Stop) -> Iterator[RoundRecord | None]:
    """Run the remaining rounds; yield each record when it is available, None where it is not yet."""
    if not journal.can_wait:
        yield journal.close()  # left open when state was lost
    while not stop.reached(federation.round, journal.rule):
        round = federation.next_round()
        yield journal.train(round)
        if stop.reached(federation.round, journal.rule):
            break  # server and clients still hold the state of the recorded round
        journal.open = federation.step(round)
        if not journal.can_wait:
            yield journal.close()
    yield journal.close()  # a requested stop may come before the last round's evaluation


def _result(run: RunContext, federation: Federation, journal: Journal, stop: Stop) -> Result:
    journal.end()
    run.progress.start_phase("personalised evaluation")
    final = journal.final()
    (state,) = run.executor.get([federation.state])
    spec = run.prepared.spec
    personal = federation.client_states() if spec.training.keep_local or spec.training.keep_half else []
    return Result(
        choice=federation.choice,
        layout=spec.exchanged(federation.workers[0].full, federation.choice.layers),
        state=state,
        rounds=federation.round,
        stopped=stop.stopped,
        totals=journal.totals,
        final=final,
        personal=personal,
        workers=federation.workers,
        devices=federation.draw.devices,
        seconds=journal.seconds,
        first_group_at=journal.first_group_at,
    )


def run_through(run: RunContext, checkpoint: Checkpoint | None = None) -> Result:
    """Run all rounds and return the result; see :func:`rounds`."""
    going = rounds(run, checkpoint)
    while True:
        try:
            next(going)
        except StopIteration as end:
            result: Result = end.value
            return result
