"""Runs that learn all answers of dialogues from files: on actors as in one process, and not the run of the last answers."""

import pyarrow.parquet as pq
import pytest
from byte_guard.dialogues import save_dialogues
from byte_guard.models import save_model
from safetensors.numpy import load_file
from support import make_tiny

import fedsim


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a function that does a run, and returns what it trained and its losses by round."""
    root = tmp_path_factory.mktemp("talks")
    model, data = save_model("llama-chat", root / "model"), save_dialogues(root / "data")

    def go(name, learn, **changes):
        task = {"name": "talks", "fields": ["messages"], "dialogue": True, "chat": True, "learn": learn}
        config = make_tiny(
            output=str(root / name),
            rounds=2,
            model={"path": model, "head": {"kind": "generation"}},
            data={"source": "files", "path": data, "task": task, "train_examples": 40, "validation_examples": 12},
            partition={"kind": "iid", "clients": 4},
            sampling={"clients_per_round": 3},
            tuner={"kind": "lora", "rank": 2},
            client={"fuse": 2, "optimizer": {"lr": 0.02}},
            **changes,
        )
        fedsim.run(config, progress=False)
        losses = pq.read_table(root / name / "rounds.parquet")["global_loss"].to_pylist()
        return load_file(root / name / "prompt" / "global.safetensors"), losses

    return go


def test_all_answers_are_learned_alike_on_actors_and_otherwise_than_the_last_ones(session_ray, trained):
    arrays, losses = trained("local", "all_answers", executor="local")
    others = trained("ray", "all_answers", executor="ray", ray={"address": "auto", "actors": 1})
    assert losses == others[1] and losses[-1] < losses[0]
    assert arrays.keys() == others[0].keys()
    assert all((arrays[name] == others[0][name]).all() for name in arrays)
    last, fewer = trained("last", "last_answer", executor="local")
    assert fewer[0] != losses[0] and any((arrays[name] != last[name]).any() for name in arrays)
