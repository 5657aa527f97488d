"""What programs give to a trained model in error, texts or settings, is answered in one sentence."""

import re

import numpy as np
import pytest
from byte_guard.models import save_model
from support import make_tiny, merged

import fedsim
from fedsim.core.errors import ConfigError, ModelError
from fedsim.data.config import TaskConfig
from fedsim.prompts.writing import prompt_rows


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a function that gives the model of a run with some changes."""
    decoder = save_model("llama", tmp_path_factory.mktemp("decoder") / "llama")

    def make(**changes):
        path = tmp_path_factory.mktemp("trained") / "run"
        given = {"output": str(path), "executor": "local", "rounds": 1, "model": {"path": decoder}}
        fedsim.run(make_tiny(**merged(given, changes)), progress=False)
        return fedsim.load_adapter(path)

    return make


@pytest.fixture(scope="module")
def writer(trained):
    """Return a model of a task of responses."""
    return trained(model={"head": {"kind": "generation"}}, data={"task": "questions"})


@pytest.fixture(scope="module")
def reader(trained):
    """Return a model of a task of classes."""
    return trained()


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("a text", r"^prompts is of type str, 'a text'; give a list of texts, here \['a text'\]$"),
        ({"text": "a", "question": "b"}, r"^prompts is of type dict, .*; give a list of texts$"),
        (None, r"^prompts is None; give a list of texts$"),
        ([("a", "b"), 5], r"^prompt 1 is of type int, 5; give a text"),
        ([None], r"^prompt 0 is None; give a text"),
        ([b"a"], r"^prompt 0 is of type bytes, b'a'; give a text"),
        ([("a", None)], r"^prompt 0 has None, which is no text but of type NoneType$"),
        ([{"text": "a", "question": 5}], r"^prompt 0 has 5, which is no text but of type int$"),
    ],
)
def test_what_is_no_list_of_prompts_is_one_sentence(writer, prompts, message):
    with pytest.raises(ModelError, match=message):
        writer.generate(prompts)


@pytest.mark.parametrize("prompt", [5, None, {"text": "a"}], ids=repr)
def test_what_is_no_dialogue_is_one_sentence(prompt):
    task = TaskConfig(name="talks", fields=("messages",), dialogue=True, chat=True)
    with pytest.raises(ModelError, match=r"^prompt 1 is (None|of type \w+, .*); give a text or a list of messages$"):
        prompt_rows(task, ["a question", prompt])


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ("a text", r"^examples is of type str, 'a text'; give a list of texts, here \['a text'\]$"),
        (5, r"^examples is of type int, 5; give a list of texts$"),
        (["a", 5], r"^example 1 is of type int, 5; give a text"),
        ([None], r"^example 0 is None; give a text"),
        ([{"text": "a"}], r"^example 0 is of type dict, \{'text': 'a'\}; give a text"),
        (["a", (5,)], r"^example 1 has 5, which is no text but of type int$"),
    ],
)
def test_what_is_no_list_of_examples_is_one_sentence(reader, examples, message):
    with pytest.raises(ModelError, match=message):
        reader.predict(examples)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"do_sample": True, "temperature": 0}, "generate: temperature is 0, but "),
        ({"do_sample": True, "temperature": -1.0}, "generate: temperature is -1.0, but "),
        ({"do_sample": True, "temperature": float("nan")}, "generate: temperature is NaN, but "),
        ({"do_sample": True, "top_p": 0.0}, "generate: top_p is 0.0, but "),
        ({"do_sample": True, "top_p": 1.5}, "generate: top_p is 1.5, but "),
        ({"do_sample": True, "top_k": 0}, "generate: top_k is 0, but "),
        ({"do_sample": True, "seed": -1}, "generate: seed is -1, but "),
        ({"max_new_tokens": 0}, "generate: max_new_tokens is 0, but "),
        ({"max_new_tokens": np.int64(-3)}, "generate: max_new_tokens is -3, but "),
        ({"temperature": 0.5}, "generate: temperature has no use with do_sample=false; "),
        ({"top_k": 5}, "generate: top_k has no use with do_sample=false; "),
        ({"top_p": 0.5}, "generate: top_p has no use with do_sample=false; "),
        ({"seed": 0}, "generate: seed has no use with do_sample=false; "),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_one_sentence(writer, given, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        writer.generate([("a", "b")], **given)


def test_settings_not_given_are_those_of_the_config(writer):
    sampled = {"do_sample": True, "max_new_tokens": np.int64(6)}
    whole = {"temperature": 1.0, "top_p": 1.0, "seed": 0}
    assert writer.generate([("a", "b")], **sampled) == writer.generate([("a", "b")], **sampled, **whole)
