"""The round loop, readable from top to bottom.

A run:  start workers -> choose layers -> start the server -> rounds -> personalised evaluation -> results.
A round: draw the cohort -> cut it into work groups -> train -> the server folds and steps -> evaluate -> record -> save.
"""

from __future__ import annotations

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


def rounds(run: RunContext, checkpoint: Checkpoint | None = None) -> Generator[RoundRecord, None, Result]:
    """Do all rounds; yield each once, when it is on record. The generator's value is the result.

    A generator that is closed before its end saves the last round on record.

    Parameters
    ----------
    checkpoint
        What to go on from, if not from the start.

    Raises
    ------
    RunInterrupted
        After a signal; the state has been saved.
    FedsimError
        On any mistake of the user, lost cluster, or failing client (``client.on_failure: raise``).
    """
    federation = Federation(run, start_workers(run.config, run.prepared, run.executor, run.progress))
    journal = Journal(run, federation, saved_round=0 if checkpoint is None else checkpoint.round)
    recovery = Recovery(run, federation, journal, checkpoint)
    del checkpoint
    try:
        while True:
            try:
                recovery.set_out()
                yield from filter(recovery.is_new, _on_record(run, federation, journal))
                return _result(run, federation, journal)
            except StateLost as loss:
                recovery.fall_back(loss)
    except (RunInterrupted, FedsimError, GeneratorExit):
        # They come at points between rounds or before a server step, where the last round's state is whole.
        recovery.save_what_is_whole()
        raise


def _on_record(run: RunContext, federation: Federation, journal: Journal) -> Iterator[RoundRecord | None]:
    """Do the rounds that are left; yield each as it is on record, None where none is yet."""
    if not journal.can_wait:
        yield journal.close()  # one that was left open by a loss
    while federation.round < run.config.rounds:
        round = federation.next_round()
        yield journal.train(round)
        journal.open = federation.step(round)
        if not journal.can_wait:
            yield journal.close()


def _result(run: RunContext, federation: Federation, journal: Journal) -> Result:
    run.progress.start_phase("personalised evaluation")
    personalised = journal.personalised()
    (state,) = run.executor.get([federation.state])
    personal = federation.client_states() if run.config.layers.unselected == "local" else []
    layout = federation.workers[0].full.exchanged(federation.choice.layers)
    return Result(
        federation.choice,
        layout,
        state,
        journal.totals,
        personalised,
        personal,
        federation.workers,
        journal.seconds,
        journal.first_group_at,
    )


def run_through(run: RunContext, checkpoint: Checkpoint | None = None) -> Result:
    """Do all rounds and return the result; see :func:`rounds`."""
    going = rounds(run, checkpoint)
    while True:
        try:
            next(going)
        except StopIteration as end:
            result: Result = end.value
            return result
