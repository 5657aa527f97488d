"""The tables of ``fedsim plan``."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from fedsim.configuration.schema import Config
from fedsim.display.report import MISSING, format_bytes
from fedsim.executors.cluster.placement import written
from fedsim.planning.machine import Machine
from fedsim.planning.memory import MemoryEstimate
from fedsim.planning.plan import Plan, PlanNode
from fedsim.planning.traffic import traffic_rows
from fedsim.simulation.privacy import privacy_plan

_UNKNOWN = "the model is not on this machine yet, or its files do not state its size, so its memory is unknown"


def plan_tables(config: Config, plan: Plan, fleet: Sequence[tuple[str, str]] = ()) -> Group:
    """Return a printable plan; ``fleet`` describes simulated devices."""
    actors = plan.actors
    rows = [
        ("cluster", _cluster(config, plan.nodes)),
        (
            "actors",
            f"{actors.count}, {actors.num_cpus:.4g} CPUs{_gpus(actors.num_gpus)} each, {_threads(plan.threads)}",
        ),
        *_placement(config),
        ("limited by", plan.limit),
        ("a round" if config.buffer is None else "at a time", _round(plan)),
    ]
    parts: list[Table | Text] = [_table("Plan", rows), _nodes(plan)]
    if plan.memory:
        traffic = [*traffic_rows(config, plan.memory), *_privacy(config)]
        parts += [_table("Memory", _memory(config, plan, plan.memory)), _table("Traffic", traffic)]
    else:
        parts.append(Text(f"  {_UNKNOWN}\n"))
    return Group(*parts, *_fleet(fleet), *_warnings(plan.warnings))


def local_tables(
    config: Config,
    memory: MemoryEstimate | None,
    machine: Machine,
    warnings: Sequence[str] = (),
    fleet: Sequence[tuple[str, str]] = (),
) -> Group:
    """Return the printable plan of a run in one process; ``fleet`` describes simulated devices."""
    groups = -(-config.clients_at_once // config.group_size)
    rows = [
        ("executor", f"local: one process, {_threads(config.client.threads)}, no actors"),
        (
            "a round" if config.buffer is None else "at a time",
            f"{config.clients_at_once} clients in {groups} groups, one after another",
        ),
    ]
    if memory is None:
        return Group(_table("Plan", rows), Text(f"  {_UNKNOWN}"), *_warnings(warnings))
    needed = memory.driver + memory.caches + memory.activations + memory.vectors + memory.client_states
    rows.append(("memory", f"about {format_bytes(needed)} of {format_bytes(machine.memory_free_bytes)} free"))
    table = _table("Plan", [*rows, *traffic_rows(config, memory), *_privacy(config)])
    return Group(table, *_fleet(fleet), *_warnings(warnings))


def _fleet(rows: Sequence[tuple[str, str]]) -> list[Table]:
    return [_table("Simulated devices", rows)] if rows else []


def _warnings(sentences: Sequence[str]) -> list[Text]:
    return [Text(f"warning: {sentence}", style="yellow") for sentence in sentences]


def _cluster(config: Config, nodes: Sequence[PlanNode]) -> str:
    if config.ray.address is None:
        return "a local Ray cluster on this machine"
    return f"{len(nodes)} node{'s' if len(nodes) > 1 else ''} at ray.address={config.ray.address}"


def _placement(config: Config) -> list[tuple[str, str]]:
    """Return the row on where actors go on a joined cluster."""
    if config.ray.address is None:
        return []
    none = "on whatever is free as they start (ray.placement=none)"
    where = none if config.ray.placement == "none" else "in a placement group of the run's own"
    labels = f", on nodes with {written(config.ray)}" if config.ray.selector else ""
    return [("placement", where + labels)]


def _reserved(config: Config, plan: Plan) -> str:
    if config.ray.address is None:
        return ""
    return (
        f"; {format_bytes(plan.reserved_bytes)} reserved with Ray"
        if plan.reserved_bytes
        else "; none reserved with Ray"
    )


def _round(plan: Plan) -> str:
    groups = f"{plan.groups} work group{'s' if plan.groups > 1 else ''}"
    waves = "1 wave" if plan.waves == 1 else f"{plan.waves} waves"
    return f"{plan.cohort} clients in {groups}: {waves} on {plan.actors.count} actors"


def _nodes(plan: Plan) -> Table:
    title = "Nodes: free CPUs and GPUs, actors, and the memory they are expected to need"
    table = Table(box=box.SIMPLE_HEAD, title=title, min_width=len(title), title_justify="left", title_style="bold")
    table.add_column("node", overflow="fold")
    for name in ("CPUs", "GPUs", "actors", "on a GPU", "need", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for node, count in zip(plan.nodes, plan.placed, strict=True):
        needed = None
        if plan.memory is not None and count:
            needed = plan.memory.stored_beside(count, plan.actors.count) + count * plan.memory.actor
        a_gpu = f"{min(count, max(1, round(1 / plan.actors.num_gpus)))}" if plan.actors.num_gpus and count else MISSING
        table.add_row(
            node.name, f"{node.free.cpus:g}", f"{node.free.gpus:g}", str(count), a_gpu, format_bytes(needed),
            format_bytes(node.memory_bytes),
        )  # fmt: skip
    return table


def _memory(config: Config, plan: Plan, memory: MemoryEstimate) -> list[tuple[str, str]]:
    tokens = (
        "the data are not on this machine yet" if memory.tokens is None else f"at most {format_bytes(memory.tokens)}"
    )
    rows = [
        ("frozen weights", f"{format_bytes(memory.weights)}, once on each node, in its object store{_loading(memory)}"),
        ("tokens", f"{tokens}, once on each node" if memory.tokens is not None else tokens),
        ("frozen-layer cache", f"at most {format_bytes(memory.caches)}, shared" if memory.caches else "none"),
        (
            "client states",
            f"at most {format_bytes(memory.client_states)}, and {format_bytes(memory.new_states)} new ones in a round"
            if memory.client_states
            else "none",
        ),
        ("sums of a round", f"at most {format_bytes(memory.sums)}"),
        ("object store", _store(plan, memory)),
        ("an actor's own", f"about {format_bytes(memory.actor)} (estimate{_reserved(config, plan)})"),
    ]
    if memory.actor_gpu is not None:
        parts = f"weights {format_bytes(memory.weights)}, passes about {format_bytes(memory.activations)}"
        if memory.gpus > 1 or memory.offload:
            fullest = f"of {memory.gpus} GPUs the fullest, " if memory.gpus > 1 else ""
            parts = f"{fullest}{format_bytes(max(memory.gpu_weights))} of the weights"
        rows.append(("an actor's GPU memory", f"about {format_bytes(memory.actor_gpu)} (estimate: {parts})"))
    rows.append(("the driver's own", f"about {format_bytes(memory.driver)} (estimate)"))
    return rows


def _loading(memory: MemoryEstimate) -> str:
    return f"; {format_bytes(memory.loading)} besides while they are read" if memory.loading else ""


def _privacy(config: Config) -> list[tuple[str, str]]:
    """Describe what a private run will have spent."""
    plan = privacy_plan(config)
    if plan is None:
        return []
    told = plan.described(config.rounds)
    words = f"epsilon {told['epsilon']:.4g} at delta {told['delta']:g} after {config.rounds} rounds"
    return [("privacy", f"{words}; noise {told['noise_multiplier']:.4g} x clipping norm; {told['assumptions'][0]}")]


def _store(plan: Plan, memory: MemoryEstimate) -> str:
    rooms = [node.store_bytes for node in plan.nodes if node.store_bytes is not None]
    room = f"; there is room for {format_bytes(min(rooms))}" if rooms else ""
    most = max(memory.stored_beside(count, plan.actors.count) for count in plan.placed)
    return f"at most {format_bytes(most)} of these on {'each' if len(plan.nodes) > 1 else 'the'} node{room}"


def _table(title: str, rows: Sequence[tuple[str, str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_header=False, padding=(0, 1), title_justify="left", title_style="bold")
    table.title = title
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def _gpus(num_gpus: float) -> str:
    return f" and {num_gpus:.4g} GPUs" if num_gpus else ""


def _threads(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"
