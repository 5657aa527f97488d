"""Server and client state between two rounds, and the step from one round to the next.

The driver passes references on and never touches a tensor.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from clients.spec import WorkerInfo
from fedsim.configuration.text import config_text
from fedsim.core.compression.blocks import Blocks
from fedsim.core.compression.links import positives, sent_down
from fedsim.core.layout import VectorLayout
from fedsim.core.messages import ClientState, GlobalState
from fedsim.executors.base import Executor, Handle
from fedsim.kept.computed import Computed
from fedsim.records.checkpoint import Checkpoint
from fedsim.records.devices import write_devices
from fedsim.records.events import writing
from fedsim.simulation.buffered import Buffered
from fedsim.simulation.client_states import ClientStates
from fedsim.simulation.context import RunContext
from fedsim.simulation.fleet import Work, check_clients, devices_of
from fedsim.simulation.fusing import choose_fuse, with_fuse
from fedsim.simulation.layer_choice import LayerChoice, choose
from fedsim.simulation.layers_ahead import stand_in
from fedsim.simulation.open_round import OpenRound, memory_warning
from fedsim.simulation.round import Draw, Round
from fedsim.simulation.short_rounds import short_round
from server.aggregation import population_weight
from server.broadcasting import Broadcasting


class Federation:
    """Server and client state after a round.

    Attributes
    ----------
    workers
        The executor's workers.
    computed
        What workers computed in earlier runs.
    round
        Rounds with a completed server step.
    state
        Global state that the next round starts from: the one object that is broadcast.
    clients
        Client states.
    fuse
        Clients that share passes through the backbone; None until decided.
    whole
        Whether server and clients hold the state after :attr:`round`; False until :meth:`set_out` has restored it.
    """

    def __init__(self, run: RunContext, workers: list[WorkerInfo]) -> None:
        self._run = run
        self._choice: LayerChoice | None = None
        self._draw: Draw | None = None
        self._sent_again = _SentAgain(run.executor)
        self._buffered: Buffered | None = None
        self.workers = workers
        self.computed = Computed(run.prepared.kept, run.config, run.prepared, workers)
        self.round = 0
        self.state: Handle = None
        self.clients = self._fresh_clients()
        self.fuse: int | None = None
        self.whole = False

    @property
    def choice(self) -> LayerChoice:
        """Which layers are exchanged."""
        assert self._choice is not None, "layers are chosen by set_out"
        return self._choice

    @property
    def draw(self) -> Draw:
        """Draws the clients of each round."""
        assert self._draw is not None, "devices are known by set_out, since layers decide what they compute"
        return self._draw

    # -- where rounds start ------------------------------------------------------------------------------------------

    def set_out(self, checkpoint: Checkpoint | None) -> None:
        """Set server and clients to the state of a checkpoint, or to the initial state."""
        full = self.workers[0].full
        self.whole = False
        if self._choice is None:
            self._check_clients(full)
            self._choice = self._choose_layers(full, checkpoint)
            self._draw = self._with_devices(full, self._choice.layers, checkpoint is None)
        self._start_server(full, self._choice.layers, checkpoint)
        if self.fuse is None:
            self._share_passes(checkpoint)
        self.whole = True

    def begin_anew(self) -> None:
        """Discard all rounds."""
        self.round, self.clients = 0, self._fresh_clients()

    def _fresh_clients(self) -> ClientStates:
        config = self._run.config
        return ClientStates(config.partition.population, objects=config.downlink is not None)

    def client_states(self) -> list[ClientState]:
        """Return the states of all clients that have trained, by ascending id."""
        return self._run.executor.get(list(self.clients.trained().values()))

    def _check_clients(self, full: VectorLayout) -> None:
        """Refuse too few clients whose devices hold the model before any of them scores its layers.

        What training needs depends on how many layers are tuned, not on which; where spectra decide that, on one at least.
        """
        run, spec = self._run, self._run.prepared.spec
        if run.config.world.devices is not None:
            layers = stand_in(run.config, full, least=True)
            needed = Work.of_spec(spec).needed_bytes(run.config, full, layers)
            check_clients(run.config, spec.train_sizes, run.prepared.recorded, needed)

    def _choose_layers(self, full: VectorLayout, checkpoint: Checkpoint | None) -> LayerChoice:
        if checkpoint is not None:
            return LayerChoice(checkpoint.layers, full.geometry.num_layers)
        run, progress = self._run, self._run.progress
        choice = choose(
            run.config,
            run.executor,
            full,
            run.prepared.spec.train_sizes,
            run.prepared.spec.initial_vector,
            progress.start_phase,
            progress.note,
            self.computed,
        )
        for spectrum in choice.spectra():
            run.folder.event("spectrum", round=0, **spectrum)
        run.folder.event("layers", **choice.record())
        return choice

    def _with_devices(self, full: VectorLayout, layers: tuple[int, ...], new: bool) -> Draw:
        run, spec = self._run, self._run.prepared.spec
        devices = devices_of(run.config, Work.of_spec(spec), full, layers, run.prepared.recorded)
        if devices is not None:
            if new:
                run.folder.event("too_small", round=0, clients=devices.too_small)
                with writing(run.folder.devices):
                    write_devices(run.folder.devices, devices)
            for sentence in devices.notes():
                run.progress.note(sentence)
        draw = Draw.of(run.config, spec.train_sizes, devices)
        if new and (warning := short_round(run.config, draw)) is not None:
            run.progress.note(warning)
        return draw

    def _start_server(self, full: VectorLayout, layers: tuple[int, ...], checkpoint: Checkpoint | None) -> None:
        config, server, spec = self._run.config, self._run.executor.server, self._run.prepared.spec
        layout, vector_F = self._initial(full, layers)
        apart = spec.turns(full, layers), spec.tuner.low_rank(layout), self._broadcasting(layout)
        sample_rate = config.clients_per_step / config.partition.population
        weight = population_weight(config.server.weighting, self.draw.able_sizes_N)
        mechanism = None if self._run.privacy is None else self._run.privacy.mechanism
        exponent = None if config.buffer is None else config.buffer.staleness_exponent
        rest = *apart, mechanism, exponent
        server.start(config.method, vector_F, layout.layers, sample_rate, weight, config.rule, *rest)
        if checkpoint is not None:
            server.load_arrays(checkpoint.server)
            self.clients.restore(checkpoint.clients, self._run.executor)
            self.draw.schedule.losses.restore(checkpoint.learned)
            self.round = checkpoint.round
        self.state = server.global_state()
        if config.buffer is not None:
            self._buffered = self._buffered or Buffered.of(config, self.draw, self._run.executor)
            self._buffered.restart(self.round, self.state)

    def _broadcasting(self, layout: VectorLayout) -> Broadcasting | None:
        config = self._run.config
        link, corrections = config.downlink, config.method.corrections
        if link is None:
            return None
        names = sent_down(corrections, config.client, config.method.serves)
        return Broadcasting(link, names, positives(corrections), Blocks.of(layout), config.seed)

    def _initial(self, full: VectorLayout, layers: tuple[int, ...]) -> tuple[VectorLayout, np.ndarray]:
        """Return the layout of what is exchanged, and its vector before any training."""
        config, spec = self._run.config, self._run.prepared.spec
        layout = spec.exchanged(full, layers)
        return layout, spec.initial_vector(layout).astype(config.model.exchange_dtype)

    def initial_state(self) -> Handle:
        """Store the global state before any training, and return its handle."""
        layout, vector_F = self._initial(self.workers[0].full, self.choice.layers)
        return self._run.executor.put(GlobalState(0, layout.layers, vector_F))

    def _share_passes(self, checkpoint: Checkpoint | None) -> None:
        """Decide how many clients train together, and limit the frozen-layer cache."""
        run, spec, layers = self._run, self._run.prepared.spec, self.choice.layers
        kept = None if checkpoint is None else checkpoint.fuse
        group = self.draw.first_group() if self._buffered is None else self._buffered.first_group()
        slot = self.computed.fuse(layers, len(group))
        choice = choose_fuse(run.config, run.executor, self.state, group, len(self.workers), kept, slot)
        run.executor.fuse = self.fuse = choice.fuse
        run.folder.event("fuse", **choice.record())
        run.folder.write_config(config_text(with_fuse(run.config, choice.fuse)))
        hidden_size = self.workers[0].hidden_size
        run.executor.keep_cached_within(
            run.config.model.trunk_cache.memory_mb * 2**20, lambda key: spec.cached_bytes(key, layers, hidden_size)
        )

    # -- from round to round -----------------------------------------------------------------------------------------

    def next_round(self) -> Round:
        """Return the next round, ready to train from this state."""
        started = time.monotonic()
        self._run.executor.refresh()
        self._sent_again.begin(self.round)
        if self._buffered is not None:
            return self._buffered.round(self.round, started)
        return Round(self.round, self.draw, self._run.executor, started)

    def step(self, round: Round) -> OpenRound:
        """Apply a trained round to the server, and store the new states of its clients.

        Raises
        ------
        ClientError
            If a client's own work failed and ``client.on_failure`` is not ``drop``, or if no client is left.
        """
        run, reports = self._run, round.reports()
        run.failures.of_round(round.number + 1, reports)
        if (warning := memory_warning(round.number + 1, reports)) is not None:
            run.progress.note(warning)
        stepping_at = time.monotonic()
        step = round.step()
        self.clients.commit(round.trained())
        self.draw.schedule.learn(round.number, reports)
        self.state = run.executor.server.global_state()
        self.round += 1
        if self._buffered is not None:
            self._buffered.stepped(self.round, self.state)
        return OpenRound(
            round=self.round,
            reports=reports,
            step=step,
            plan=round.plan,
            clients_resent=self._sent_again.end(reports),
            seconds_train=round.trained_at - round.started,
            seconds_server=time.monotonic() - stepping_at,
        )


class _SentAgain:
    """Counts clients of a round whose work was sent again, by the executor or because the round is repeated."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._counted = 0
        """The executor's count when the round began."""
        self._furthest = 0
        """Rounds begun so far."""
        self._done_before = False

    def begin(self, round: int) -> None:
        """Begin a round, counted from 0."""
        self._counted = self._executor.resent_clients  # includes work outside rounds, such as evaluation
        self._done_before, self._furthest = round < self._furthest, max(self._furthest, round + 1)

    def end(self, reports: Sequence[object]) -> int:
        """Return the count for a round with these reports."""
        return self._executor.resent_clients - self._counted + (len(reports) if self._done_before else 0)
