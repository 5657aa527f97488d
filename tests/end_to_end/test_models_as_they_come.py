"""Models whose tokenizer knows more than they do, or with other files beside them: through run, prediction, plan and doctor."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from rich.console import Console

import fedsim
from clients.backbone.loading import load_tokenizer
from clients.config import ModelConfig
from fedsim.cli import main
from fedsim.core.errors import ModelError
from fedsim.planning.model_notes import model_notes
from fedsim.prompts.prompt_file import read_prompt
from fedsim.prompts.prompted_model import load_prompt

CLASSES = {
    "roberta": (transformers.RobertaConfig, transformers.RobertaForMaskedLM),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
}
TASK = {
    "name": "own", "fields": ["text"], "labels": ["0", "1"], "label_words": ["bad", "good"],
    "template": "{text} It was <mask> .",
}  # fmt: skip
PLAIN = [(f"the film was {'good' if i % 2 else 'bad'}" + " indeed" * (i % 3), i % 2) for i in range(40)]
STRANGE = ("a wonderful film", 1)


@pytest.fixture(scope="module", params=CLASSES)
def model(request, tmp_path_factory):
    """A tiny random model with the embedded model's tokenizer."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = load_tokenizer(ModelConfig())
    config, kind = CLASSES[request.param]
    torch.manual_seed(0)
    kind(
        config(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
            max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id, bos_token_id=0, eos_token_id=2,
        )
    ).save_pretrained(folder)  # fmt: skip
    tokenizer.save_pretrained(folder)
    return folder


def extended(model, folder, *words, **special):
    """Return a copy of the model with words or special tokens added to its tokenizer."""
    shutil.copytree(model, folder)
    tokenizer = load_tokenizer(ModelConfig(path=str(folder)))
    tokenizer.add_tokens(list(words))
    tokenizer.add_special_tokens(special)
    tokenizer.save_pretrained(folder)
    return folder


def config(make, tmp_path, model, train=PLAIN, validation=PLAIN, output="run", **changes):
    data = tmp_path / f"data-{output}"
    data.mkdir()
    for name, rows in (("train", train), ("validation", validation)):
        lines = (json.dumps({"text": text, "label": label}) for text, label in rows)
        (data / f"{name}.jsonl").write_text("\n".join(lines))
    sizes = {"train_examples": None, "validation_examples": None}
    base = {
        "output": str(tmp_path / output), "executor": "local", "rounds": 1, "model": {"path": str(model)},
        "data": {"path": str(data), "task": TASK, **sizes}, "partition": {"kind": "iid", "clients": 4},
        "sampling": {"clients_per_round": 2},
        "client": {"epochs": 1, "fuse": "off"},  # auto goes by time, and last bits by it
    }  # fmt: skip
    return make(**{**base, **changes})


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_text_with_a_word_that_the_model_does_not_know_stops_a_run_before_it_begins(
    tiny_config, tmp_path, model, split
):
    strange = extended(model, tmp_path / "model", "wonderful")
    run = config(tiny_config, tmp_path, strange, **{split: [*PLAIN, STRANGE]})
    with pytest.raises(ModelError, match=rf"{split}\.jsonl: the text 'a wonderful film' has the token 'wonderful'"):
        fedsim.run(run, progress=False)
    assert not (tmp_path / "run").exists()


def test_a_text_to_predict_is_named_and_the_next_one_is_predicted(tiny_config, tmp_path, model):
    strange = extended(model, tmp_path / "model", "wonderful")
    fedsim.run(config(tiny_config, tmp_path, strange), progress=False)
    loaded = load_prompt(tmp_path / "run")
    for ask in (loaded.predict, loaded.scores):
        with pytest.raises(ModelError, match=r"^texts: the text 'a wonderful film' has the token 'wonderful'"):
            ask(["a bad film", STRANGE[0]])
    assert loaded.predict(["a bad film"])[0] in ("0", "1")


def test_a_padding_token_that_was_added_changes_nothing(tiny_config, tmp_path, model):
    padded = extended(model, tmp_path / "model", pad_token="[PAD]")
    assert load_tokenizer(ModelConfig(path=str(padded))).pad_token_id == len(load_tokenizer(ModelConfig()))
    for output, folder in (("before", model), ("after", padded)):
        fedsim.run(config(tiny_config, tmp_path, folder, output=output), progress=False)
    before, after = (read_prompt(tmp_path / output) for output in ("before", "after"))
    assert np.array_equal(before.tuned_LX, after.tuned_LX)
    texts = [text for text, _ in PLAIN]
    assert np.array_equal(*(load_prompt(tmp_path / output).scores(texts) for output in ("before", "after")))


# -- what may surprise -------------------------------------------------------------------------------------------------


def with_adapter(model, folder, kind):
    shutil.copytree(model, folder)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": kind, "base_model_name_or_path": "base"}))
    return folder


def test_a_run_says_that_an_adapter_is_left_out_and_is_as_without_it(tiny_config, tmp_path, model):
    beside = with_adapter(model, tmp_path / "model", "LORA")
    console = Console(file=io.StringIO(), width=400)
    fedsim.run(config(tiny_config, tmp_path, beside, output="after"), progress=False, console=console)
    fedsim.run(config(tiny_config, tmp_path, model, output="before"), progress=False)
    assert f"warning: the folder of model {beside} holds a PEFT adapter of type LORA" in console.file.getvalue()
    before, after = (read_prompt(tmp_path / output) for output in ("before", "after"))
    assert np.array_equal(before.tuned_LX, after.tuned_LX)


def test_an_adapter_that_a_run_can_start_from_is_named_unless_it_does(tiny_config, tmp_path, model):
    beside = with_adapter(model, tmp_path / "model", "PREFIX_TUNING")
    (sentence,) = model_notes(tiny_config(model={"path": str(beside)}))
    assert sentence.endswith(f"to start from it, set prompt.start_from={beside}")
    assert model_notes(tiny_config(model={"path": str(beside)}, prompt={"start_from": str(beside)})) == []
    assert model_notes(tiny_config(model={"path": str(model)})) == []


HALF = {
    "dtype": {"model": {"dtype": "float16"}},
    "autocast": {"model": {"autocast": "float16"}},
}


@pytest.mark.parametrize("key", HALF)
def test_float16_on_cpus_is_told_and_on_gpus_is_not(tiny_config, monkeypatch, key):
    monkeypatch.setattr("fedsim.planning.model_notes.visible_gpus", lambda: ())
    (sentence,) = model_notes(tiny_config(**HALF[key]))
    assert sentence.endswith(f"set model.{key}=bfloat16")
    model = {**HALF[key]["model"], "device": "cpu"}
    shared = {"num_gpus_per_actor": 0.5}
    assert model_notes(tiny_config(executor="local", **HALF[key])) == [sentence]
    assert model_notes(tiny_config(model=model, ray=shared)) == [sentence]
    assert model_notes(tiny_config(ray=shared, **HALF[key])) == []
    monkeypatch.setattr("fedsim.planning.model_notes.visible_gpus", lambda: ("a GPU",))
    assert model_notes(tiny_config(executor="local", **HALF[key])) == []
    assert model_notes(tiny_config(model={key: "bfloat16"})) == []


@pytest.mark.parametrize("executor", ["local", "ray"])
@pytest.mark.parametrize("command", ["plan", "doctor"])
def test_plan_and_doctor_say_so_too(tmp_path, monkeypatch, capsys, command, executor):
    (tmp_path / "config.yaml").write_text("rounds: 1")
    words = [f"executor={executor}", "model.dtype=float16", "model.device=cpu"]
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.argv", ["fedsim", command, str(tmp_path / "config.yaml"), *words])
    with pytest.raises(SystemExit):
        main()
    line = next(line for line in capsys.readouterr().out.splitlines() if "model.dtype=float16" in line)
    assert line.startswith("warning") and line.endswith("set model.dtype=bfloat16")
