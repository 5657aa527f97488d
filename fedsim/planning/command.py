"""The ``fedsim plan`` command: plan a run from its config, data, model and machines, without starting it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fedsim.configuration.schema import Config
from fedsim.core.errors import ConfigError
from fedsim.data.tasks import resolve_task
from fedsim.executors.cluster.local_cluster import store_bytes
from fedsim.executors.cluster.sizing import NodeResources
from fedsim.planning.fleet_forecast import forecast
from fedsim.planning.fleet_table import fleet_rows
from fedsim.planning.machine import Machine, this_machine
from fedsim.planning.memory import MemoryEstimate, estimate_memory
from fedsim.planning.model_notes import model_notes
from fedsim.planning.model_shape import model_shape
from fedsim.planning.plan import PlanNode, make_plan
from fedsim.planning.record import local_record, plan_record
from fedsim.planning.table import local_tables, plan_tables
from fedsim.simulation.privacy import privacy_plan
from server.sampling import cohort

if TYPE_CHECKING:
    from fedsim.executors.cluster.nodes import ClusterNode
    from fedsim.executors.cluster.placement import NodeState
    from fedsim.simulation.preparation import PartitionedData

_NODE_SECONDS = 20.0


def print_plan(config: Config, console: Console) -> dict[str, Any]:
    """Print what would run where and how much memory it would take; return its figures.

    Raises
    ------
    FedsimError
        If the run is not possible as configured; the message suggests one that is.
    """
    config, data = _settled(config)
    privacy_plan(config)  # refuses noise that cannot be found
    shape = model_shape(config.model)
    classes = resolve_task(config.data.task).num_classes
    examples = None if data is None else len(data.dataset.train) + len(data.dataset.validation)
    memory = None if shape is None else estimate_memory(config, shape, examples, classes)
    fleet = None if data is None else forecast(config, data, shape, memory)
    notes = [*model_notes(config), *(() if fleet is None else fleet.warnings)]
    rows = [] if fleet is None else fleet_rows(config, fleet)
    if config.executor == "local":
        console.print(local_tables(config, memory, this_machine(), notes, rows))
        return local_record(config, memory, notes)
    nodes = _own_node(config, memory) if config.ray.address is None else _cluster(config)
    plan = make_plan(config, nodes, memory)
    plan = replace(plan, warnings=(*plan.warnings, *notes))
    console.print(plan_tables(config, plan, rows))
    return plan_record(plan)


def _settled(config: Config) -> tuple[Config, PartitionedData | None]:
    """Return the config with its number of clients, and the data, partitioned to check that this works.

    The data are None if they are the hub's, which are not on this machine.
    """
    if config.data.effective_source == "hub":
        if config.partition.clients is None:
            raise ConfigError("the hub's data are not on this machine, so the plan needs partition.clients")
        return config, None
    from fedsim.simulation.preparation import partition_data, settled

    config, read = settled(config)
    data = read or partition_data(config)
    sizes_N = data.shards.train_sizes
    cohort(config.sampling, config.seed, 0, sizes_N)  # refuses a cohort larger than the number of clients
    return config, data


def _own_node(config: Config, memory: MemoryEstimate | None) -> list[PlanNode]:
    """Return this machine as a local Ray cluster would see it."""
    from fedsim.executors.cluster.ray_internals import detected_cpus

    machine = this_machine()
    cpus = config.ray.num_cpus or detected_cpus()
    gpus = len(machine.gpus) if config.ray.num_gpus is None else config.ray.num_gpus
    unknown = memory is None and config.ray.object_store_mb is None
    store = None if unknown else store_bytes(config.ray, 0 if memory is None else memory.stored)
    free = NodeResources(cpus, gpus)
    return [PlanNode("this machine", free, machine.memory_bytes, store, _smallest_gpu(machine))]


def _cluster(config: Config) -> list[PlanNode]:
    from fedsim.executors.cluster.nodes import ask_every_node, cluster_nodes, joined
    from fedsim.executors.cluster.placement import usable_nodes

    with joined(config.ray):
        usable = usable_nodes(config.ray)
        nodes = [node for node in cluster_nodes() if node.id in usable]
        # Nodes are queried only for what Ray does not report, since that starts a process there.
        asks = config.ray.num_gpus_per_actor > 0
        machines = ask_every_node(nodes, this_machine, _NODE_SECONDS) if asks else [None] * len(nodes)
    return [_plan_node(node, machine, usable[node.id]) for node, machine in zip(nodes, machines, strict=True)]


def _plan_node(node: ClusterNode, machine: object, state: NodeState) -> PlanNode:
    gpu = _smallest_gpu(machine) if isinstance(machine, Machine) else None
    rest = gpu, node.id, state.whole, state.memory
    return PlanNode(node.address, node.free, node.memory_bytes, node.store_bytes, *rest)


def _smallest_gpu(machine: Machine) -> int | None:
    return min((gpu.total_bytes for gpu in machine.gpus if gpu.total_bytes), default=None)
