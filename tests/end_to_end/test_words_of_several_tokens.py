"""Runs with label words of several tokens: on record is what the loaded adapter says, and what PEFT says of it."""

from __future__ import annotations

import json

import numpy as np
import peft
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from byte_guard.models import save_model
from safetensors.numpy import load_file
from support import make_tiny, sweep

import fedsim
from fedsim.configuration.schema import build_config
from fedsim.data.sources import load_dataset
from fedsim.prompts.peft_adapter import export_peft
from fedsim.prompts.prompted_model import load_prompt

TASK = {
    "name": "reviews",
    "fields": ["text"],
    "labels": ["negative", "positive"],
    "template": '{"placeholder":"text_a"} . It was {"mask"} .',
    "label_words": ["not great", ["great", "very good"]],
}
UPPER = {"layers": {"choose": "top", "share": 0.5, "unselected": "none"}}
RUNS = {
    "encoder, prefix": {"model": {"head": {"calibration": "empty_text"}}, **UPPER},
    "encoder, masks one by one": {
        "model": {"head": {"calibration": "empty_text", "decoding": "stepwise"}},
        "partition": {"holdout_fraction": 0.3},
        "evaluation": {"select_on": "holdout"},
        "prompt": {"position_offset": "paper"},
        "layers": {"choose": "all"},
    },
    "decoder, LoRA": {
        "model": {"path": "llama", "head": {"calibration": "empty_text"}},
        "data": {"task": {"word_end": " . <eos>"}},
        "tuner": {"kind": "lora", "rank": 2},
    },
    "decoder, prefix": {
        "model": {"path": "llama", "head": {"loss": "vocabulary"}},
        "prompt": {"position_offset": "paper"},
        "layers": {"choose": "all"},
    },
}


def config(root, name, **more):
    changes = json.loads(json.dumps(RUNS[name]))
    task = {**TASK, **changes.get("data", {}).get("task", {})}
    if "path" in changes["model"]:
        changes["model"]["path"] = save_model(changes["model"]["path"], root / "model")
    changes["data"] = {"task": task, "train_examples": 60, "validation_examples": 40}
    changes |= {"rounds": 1, "executor": "local", "output": str(root / "run"), **more}
    changes |= {
        "partition": {"clients": 4, **changes.get("partition", {})},
        "sampling": {"clients_per_round": 2},
        "client": {"optimizer": {"lr": 0.02}, "fuse": 2},
        "evaluation": {"keep_predictions": True, **changes.get("evaluation", {})},
    }
    return make_tiny(**changes)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_what_its_adapter_predicts_and_what_peft_says(tmp_path, name):
    made = config(tmp_path, name)
    assert made.data.task.template == "{text} . It was <mask> ."
    summary = fedsim.run(made, progress=False)
    ours = load_prompt(tmp_path / "run")
    validation = load_dataset(made.data, made.seed).validation
    kept = pq.read_table(tmp_path / "run" / "predictions.parquet").to_pydict()
    scores_NC = ours.scores(validation.texts, batch_size=16)
    assert scores_NC.argmax(1).tolist() == kept["prediction"]
    assert summary["num_classes"] == 2 and len(set(kept["prediction"])) <= 2
    if name == "encoder, prefix":
        return  # in some layers alone, for which PEFT has no form
    folder = export_peft(tmp_path / "run", tmp_path / "adapter")
    readme = (folder / "README.md").read_text()
    stepwise = made.model.head.decoding == "stepwise"
    assert ("is filled with it, and the model runs again" in " ".join(readme.split())) == stepwise
    assert ("summed log-probability" in readme) == stepwise
    if name.startswith("encoder"):
        return  # the exported prefix of an encoder is compared elsewhere
    assert "each word is written behind the text" in readme
    assert ("` . <eos>` behind a word" in readme) == (made.data.task.word_end is not None)
    base = transformers.AutoModelForCausalLM.from_pretrained(made.model.path, dtype=torch.float32).eval()
    plain = _scores(base, ours, [""])
    theirs = peft.PeftModel.from_pretrained(base, str(folder)).eval()
    expected = _scores(theirs, ours, [text for (text,) in validation.texts[:6]])
    if made.model.head.calibration == "empty_text":
        expected = expected - plain
    np.testing.assert_allclose(scores_NC[:6], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", sweep(RUNS, ["encoder, masks one by one"]))
def test_actors_train_and_predict_the_same(session_ray, tmp_path, name):
    """Bits of what is trained, the chosen round, and every prediction, of the global model and of clients' own."""
    made = []
    for executor in "local", "ray":
        folder = tmp_path / executor
        own = config(folder, name, executor=executor, rounds=2, ray={"address": "auto", "actors": 1})
        summary = fedsim.run(own, progress=False)
        paths = sorted((folder / "run" / "prompt").glob("*.safetensors"))
        files = {path.name: {key: array.tobytes() for key, array in load_file(path).items()} for path in paths}
        rounds = pq.read_table(folder / "run" / "rounds.parquet").select(["global_loss", "personalised_metric"])
        kept = pq.read_table(folder / "run" / "predictions.parquet")
        made.append((files, rounds.to_pydict(), kept.to_pydict(), summary["best_global_round"]))
    assert made[0] == made[1]
    assert len(made[0][1]["global_loss"]) == 3


def test_how_masks_are_read_changes_what_is_predicted_and_not_what_is_trained(tmp_path):
    """The choice of the best round by held-out examples goes by what is predicted."""
    figures = []
    for decoding in "stepwise", "parallel":
        given = config(tmp_path / decoding, "encoder, masks one by one", rounds=2).model_dump(mode="json")
        given["model"]["head"]["decoding"] = decoding
        fedsim.run(build_config(given), progress=False)
        folder = tmp_path / decoding / "run"
        rounds = pq.read_table(folder / "rounds.parquet").to_pydict()
        figures.append((load_prompt(folder).tuned_LX, rounds))
    (tuned_LX, stepwise), (same_LX, parallel) = figures
    assert torch.equal(tuned_LX, same_LX)
    for column in "global_loss", "holdout_loss":
        assert all(ours != theirs for ours, theirs in zip(stepwise[column][1:], parallel[column][1:], strict=True))


def _scores(model, ours, texts):
    """Return the class scores of a model of PEFT or transformers, by the README: each text with each word alone."""
    tokenizer, task = ours.tokenizer, ours.task
    end = task.word_end or ""
    rows = []
    for text in texts:
        classes = []
        for words in task.words_of_classes:
            means = []
            for word in words:
                trunk = tokenizer(f"{text} . It was", add_special_tokens=False)["input_ids"]
                start = [tokenizer.bos_token_id, *trunk]
                whole = tokenizer(f"{text} . It was {word}{end.removesuffix('<eos>')}", add_special_tokens=False)
                own = whole["input_ids"][len(trunk) :] + [tokenizer.eos_token_id] * end.endswith("<eos>")
                with torch.no_grad():
                    logits = model(input_ids=torch.tensor([[*start, *own]])).logits[0]
                logp = logits.log_softmax(-1)[len(start) - 1 : -1]
                means.append(float(logp[torch.arange(len(own)), own].mean()))
            classes.append(np.mean(means))
        rows.append(classes)
    return np.array(rows)
