"""Training on responses by a loop with PEFT and by fedsim, at a real decoder's size: one by one, and in shared passes.

    python -m benchmarks.generation_training --model FOLDER [--alpaca] [--clients 8] [--steps 2] [--batch-size 4]
        [--runs 5] [--json FILE]

FOLDER holds a decoder, such as SmolLM2-135M; the task is ``questions`` of the embedded corpus. With ``--alpaca`` its prompts
are in Alpaca's template, whose first sentences all texts share, and ``beginnings apart`` is fedsim without
``model.shared_beginnings``. Two processes with one
thread each share the clients on all sides. All train the same LoRA on the same mini-batches, in float32 unless a side says
otherwise (fedsim's bfloat16 products, PyTorch's autocast around PEFT's), and end with the same numbers, which is checked.
``peft`` is the loop of PEFT's examples: batches padded to their longest, labels of -100 on prompts and padding, and the
model's own loss, which takes the scores of all words at every token. ``peft, head on responses`` computes these where a token
of a response is predicted alone.

Shape suffixes: F entries of the exchanged vector, B examples of a batch, R tokens of responses.
"""

from __future__ import annotations

import multiprocessing
import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from benchmarks.measure import RUNS, Row, compare, in_turn, present
from fedsim.configuration.schema import Config, build_config
from fedsim.data.embedded import EMBEDDED_TASKS
from fedsim.data.tasks import TASKS

if TYPE_CHECKING:
    from clients.spec import WorkerSpec

_PROCESSES = 2
_APART = {"float32": 0.02, "bfloat16": 0.5}
"""Largest distance between the ends of sides, as a share of the way from the start, by the format of products. Adam's first
steps are little more than signs, which rounding turns where a gradient is next to nothing."""


@dataclass(frozen=True)
class Side:
    """One way to train."""

    name: str
    products: str = "float32"
    """``model.products`` of fedsim; PyTorch's autocast around the loop of PEFT."""
    fuse: bool = False
    head_alone: bool = False
    """The PEFT loop computes the LM head for responses alone."""
    beginnings: str = "auto"
    """``model.shared_beginnings`` of fedsim."""

    @property
    def worker(self) -> str:
        """Name of the worker that trains; sides with the same model share one."""
        return f"{self.products}-{self.beginnings}"

    @property
    def is_peft(self) -> bool:
        """Whether it is the loop with PEFT."""
        return self.name.startswith("peft")


def sides(alpaca: bool) -> list[Side]:
    """Return the sides; those with products in bfloat16 where the processor multiplies it."""
    from clients.backbone.product_format import multiplies_bfloat16

    found = [
        Side("peft"),
        Side("peft, head on responses", head_alone=True),
        Side("fedsim, one by one"),
        *([Side("fedsim, shared passes, beginnings apart", fuse=True, beginnings="off")] if alpaca else []),
        Side("fedsim, shared passes", fuse=True),
    ]
    if multiplies_bfloat16():
        found += [Side("peft, bfloat16", "bfloat16"), Side("fedsim, shared passes, bfloat16", "bfloat16", fuse=True)]
    return found


def config_of(model: Path, alpaca: bool, clients: int, steps: int, batch_size: int) -> Config:
    """Return the config of the run whose local training is measured."""
    task: Any = "questions"
    if alpaca:
        template = TASKS["alpaca"].template.format(instruction="{question}", input="{text}")
        task = EMBEDDED_TASKS[task].model_copy(update={"template": template}).model_dump(exclude_unset=True)
    return build_config(
        {
            "executor": "local",
            "model": {"path": str(model), "head": {"kind": "generation"}, "products": "float32"},
            "data": {
                "task": task,
                "source": "embedded",
                "train_examples": clients * steps * batch_size,
                "validation_examples": 8,
            },
            "partition": {"kind": "iid", "clients": clients, "holdout_fraction": 0.0},
            "sampling": {"clients_per_round": clients},
            "server": {"kind": "fedavg"},
            "tuner": {"kind": "lora", "rank": 8},
            "layers": {"choose": "all"},
            "client": {"epochs": None, "steps": steps, "batch_size": batch_size, "threads": 1},
        }
    )


class PeftLoop:
    """Trains clients one by one with PEFT, from the numbers of a vector."""

    def __init__(self, spec: WorkerSpec) -> None:
        from peft import LoraConfig, TaskType, get_peft_model
        from transformers import AutoModelForCausalLM

        from clients.backbone.families import FAMILIES

        self._spec, lora = spec, spec.tuner.lora  # type: ignore[attr-defined]
        model = AutoModelForCausalLM.from_pretrained(spec.model.path, dtype="float32", attn_implementation="sdpa")
        family = FAMILIES[model.config.model_type]
        self._layers = f"{model.base_model_prefix}.{family.layers}"
        adapter = LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=lora.rank,
            lora_alpha=int(lora.alpha),
            target_modules=list(lora.targets or family.lora_targets),
        )
        self._model: Any = get_peft_model(model, adapter)

    def train(self, client: int, layout: Any, start_F: np.ndarray, side: Side) -> np.ndarray:
        """Return the client's vector after its steps."""
        import torch

        from clients.training.local_job import batches
        from fedsim.core import seeds

        config, indices_N = self._spec.training.client, self._spec.shards.train(client)
        owned = self._owned(layout)
        tuned_LX, _ = layout.split(start_F)
        for parameters, row_X in zip(owned, tuned_LX, strict=True):
            for parameter, array in zip(parameters, layout.geometry.split(row_X).values(), strict=True):
                parameter.data.copy_(torch.from_numpy(array))
        own = config.optimizer
        trained = [parameter for parameters in owned for parameter in parameters]
        betas = (own.beta1, own.beta2)
        optimizer = torch.optim.AdamW(trained, lr=own.lr, betas=betas, eps=own.eps, weight_decay=own.weight_decay)
        rng = seeds.stream(self._spec.training.seed, 0, client, "shuffle")
        for _, positions in batches(config, len(indices_N), rng):
            with torch.autocast("cpu", torch.bfloat16, enabled=side.products == "bfloat16"):
                loss = self._loss(indices_N[positions], side.head_alone)
            optimizer.zero_grad()
            loss.backward()
            if own.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(trained, own.clip_norm)
            optimizer.step()
        return np.concatenate([parameter.detach().numpy().ravel() for parameter in trained])

    def _owned(self, layout: Any) -> list[list[Any]]:
        """Return the parameters of each layer, in the order of the vector."""
        named = dict(self._model.named_parameters())
        start = f"base_model.model.{self._layers}"
        return [
            [named[f"{start}.{layer}.{name}.default.weight"] for name, _ in layout.geometry.arrays]
            for layer in layout.layers
        ]

    def _loss(self, indices_B: np.ndarray, head_alone: bool) -> Any:
        import torch

        table = self._spec.train
        batch = table.batch(indices_B)
        ids_BT, mask_BT = torch.from_numpy(batch.input_ids_BT), torch.from_numpy(batch.attention_mask_BT)
        starts_B1 = torch.from_numpy(table.response_starts_N[indices_B].astype(np.int64)).unsqueeze(1)  # type: ignore[index]
        prompt_BT = torch.arange(ids_BT.shape[1]) < starts_B1
        labels_BT = ids_BT.masked_fill(prompt_BT | (mask_BT == 0), -100)
        if not head_alone:
            return self._model(input_ids=ids_BT, attention_mask=mask_BT, labels=labels_BT, use_cache=False).loss
        model = self._model.base_model.model
        hidden_BTD = model.base_model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state
        read_BT = labels_BT[:, 1:] != -100
        logits_RV = model.get_output_embeddings()(hidden_BTD[:, :-1][read_BT])
        return torch.nn.functional.cross_entropy(logits_RV, labels_BT[:, 1:][read_BT])


# -- a process with its share of the work ------------------------------------------------------------------------------


class Share:
    """Model, data and all ways to train, in one process."""

    def __init__(self, folder: str) -> None:
        from fedsim.core.messages import GlobalState

        specs = {path.stem: pickle.loads(path.read_bytes()) for path in Path(folder).glob("*.pickle")}
        self._workers = {name: spec.build("cpu") for name, spec in specs.items()}
        first = Side("").worker
        spec = specs[first]
        self._layout = self._workers[first].info().full
        start_F = spec.initial_vector(self._layout)
        # Away from starts at which some arrays have no gradient yet.
        start_F += np.random.default_rng(0).normal(0.0, 0.01, len(start_F)).astype(np.float32)
        self._state = GlobalState(0, self._layout.layers, start_F)
        self._loop, self._sizes_C = PeftLoop(spec), spec.train_sizes

    def start(self) -> np.ndarray:
        """Return the vector from which all clients train."""
        return np.asarray(self._state.vector_F)

    def run(self, side: Side, clients: list[int]) -> np.ndarray:
        """Train some clients; return the sum of their vectors, weighted by examples."""
        if side.is_peft:
            total_F = np.zeros(self._layout.size)
            for client in clients:
                total_F += self._sizes_C[client] * self._loop.train(client, self._layout, self.start(), side)
            return total_F
        from fedsim.core.messages import ClientState, WorkGroup

        group = WorkGroup(0, 0, tuple(clients), fuse=len(clients) if side.fuse else 1)
        made = self._workers[side.worker].train(group, self._state, *map(ClientState, clients))
        failed = [report.failure for report in made.reports if report.failure is not None]
        if failed:
            raise RuntimeError(failed[0].traceback)
        return made.update.sums["vector"]


def _serve(connection: Connection, folder: str) -> None:
    import torch

    torch.set_num_threads(1)
    share = Share(folder)
    connection.send("ready")
    while (asked := connection.recv()) is not None:
        method, arguments = asked
        connection.send(getattr(share, method)(*arguments))


@contextmanager
def processes(config: Config, measured: list[Side]) -> Iterator[list[Connection]]:
    """Start the processes, which load model and data."""
    from fedsim.simulation.preparation import prepare

    context = multiprocessing.get_context("spawn")
    with TemporaryDirectory() as folder:
        for side in measured:
            own = {"products": side.products, "shared_beginnings": side.beginnings}
            model = config.model.model_copy(update=own)
            spec = prepare(config.model_copy(update={"model": model})).spec
            (Path(folder) / f"{side.worker}.pickle").write_bytes(pickle.dumps(spec, protocol=5))
        started = []
        for _ in range(_PROCESSES):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, folder), daemon=True)
            process.start()
            started.append((process, here))
        try:
            for _, here in started:
                here.recv()
            yield [here for _, here in started]
        finally:
            for process, here in started:
                here.send(None)
                process.join(10)
                process.kill()


def measure(config: Config, measured: list[Side], runs: int) -> list[Row]:
    """Return a row for each side, with its ratio to the PEFT loop.

    Raises
    ------
    RuntimeError
        If the sides did not do the same work.
    """
    clients = list(range(config.partition.population))
    parts = [clients[place::_PROCESSES] for place in range(_PROCESSES)]
    ends: dict[str, np.ndarray] = {}
    with processes(config, measured) as connections:

        def work(side: Side) -> float:
            started = time.perf_counter()
            for connection, part in zip(connections, parts, strict=True):
                connection.send(("run", (side, part)))
            ends[side.name] = sum(connection.recv() for connection in connections)
            return time.perf_counter() - started

        for side in measured:
            work(side)
        connections[0].send(("start", ()))
        start_F = connections[0].recv().astype(np.float64)
        figures = in_turn({side.name: lambda side=side: work(side) for side in measured}, runs)
    first, *others = measured
    way_F = ends[first.name] - config.data.train_examples * start_F  # type: ignore[operator]
    rows = []
    for base in (side.name for side in measured if side.is_peft):
        rows += [row for row in compare("generation_training", figures, "seconds", base) if row.ratio_to != row.case]
    for side in others:
        apart = float(np.linalg.norm(ends[side.name] - ends[first.name]) / np.linalg.norm(way_F))
        if not apart < _APART[side.products]:
            raise RuntimeError(f"{side.name} ends {apart:.1e} of the way from {first.name}: not the same work")
        rows.append(Row("generation_training", f"{side.name}: end apart", apart, "of the way"))
    return rows


def main(
    model: Annotated[Path, typer.Option(help="Folder of a decoder, such as SmolLM2-135M.")],
    alpaca: Annotated[bool, typer.Option("--alpaca", help="Put prompts into Alpaca's template.")] = False,
    clients: Annotated[int, typer.Option(help="Clients that train.", min=2)] = 8,
    steps: Annotated[int, typer.Option(help="Local steps of each.", min=1)] = 2,
    batch_size: Annotated[int, typer.Option(help="Examples of a mini-batch.", min=1)] = 4,
    runs: Annotated[int, typer.Option(help="Measurements of each side.", min=1)] = RUNS,
    json: Annotated[Path | None, typer.Option(help="File for JSON lines.")] = None,
) -> None:
    """Measure and print."""
    rows = measure(config_of(model.absolute(), alpaca, clients, steps, batch_size), sides(alpaca), runs)
    present(
        rows,
        json,
        f"training on responses, LoRA, mini-batches of {batch_size}: seconds, and ratios to the loop of PEFT",
    )


if __name__ == "__main__":
    typer.run(main)
