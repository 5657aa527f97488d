"""A task of which a part is missing: the sentence says what is there, what it lacks, and that, once given, is enough."""

import pytest

from fedsim.configuration.schema import build_config, read_config
from fedsim.core.errors import ConfigError

PAIR, TALK = {"fields": ["q", "r"]}, {"fields": ["messages"]}
ASKED, ANSWER, CLASSES = {"template": "{q}"}, {"template": "{q}", "response": "{r}"}, {"labels": ["a", "b"]}
DIALOGUE = {"dialogue": True, "chat": True}
HALF = [
    (PAIR, "neither labels nor response is given, .*; give labels, the values of column 'label'", CLASSES),
    (PAIR | ASKED, r"or response, the text for it to write, such as '\{r\}'$", {"response": "{r}"}),
    (TALK, "or dialogue: true with chat: true if 'messages' is a column of messages", DIALOGUE),
    (TALK | {"dialogue": False}, "or dialogue: true with chat: true", DIALOGUE),
    (TALK | {"labels": []}, "or dialogue: true with chat: true", DIALOGUE),
    (TALK | {"dialogue": False, "chat": True}, "chat has no use with .*response=null; .* data.task.dialogue=true", DIALOGUE),
    (TALK | {"chat": True, "response": "{messages}"}, "chat needs template, .*, or dialogue: true if 'messages'", DIALOGUE),
    (TALK | {"dialogue": True}, "dialogue needs chat: true", DIALOGUE),
    (TALK | {"learn": "all_answers"}, "learn has no use with data.task.dialogue=false", DIALOGUE),
    (TALK | DIALOGUE | {"label_words": ["n", "y"]}, "label_words has no use .*dialogue=true", {"label_words": None}),
    (PAIR | {"chat": True} | ASKED, "chat has no use with .*response=null; .* give data.task.response,", {"response": "{r}"}),
    (PAIR | {"system": "Be brief."} | ANSWER, "system has no use .* data.task.chat=true makes", {"chat": True}),
    (PAIR | {"optional_fields": ["q"]}, "optional_fields has no use with data.task.response=null", ANSWER),
    (PAIR | {"metric": "token_accuracy"}, "metric token_accuracy is one of responses, but neither", ANSWER),
    (PAIR | {"template": "{q} {r} <mask>"}, "template has <mask>, .* but labels is not given", CLASSES),
    (PAIR | {"label_words": ["n", "y"]}, "label_words has the words of classes, but labels is not given", CLASSES),
    (PAIR | {"label_field": "k"}, r"label_field has no use with data.task.labels=\[\]", CLASSES),
    ({"fields": ["q", "q"], "labels": ["a", "b"]}, "fields has 'q' twice", {"fields": ["q"]}),
]  # fmt: skip


def task_of(keys):
    values = {"data": {"path": "x", "task": {"name": "own", **keys}}}
    return build_config(values, lambda key: "own.yaml").data.task


@pytest.mark.parametrize(("given", "sentence", "missing"), HALF)
def test_what_is_missing_is_named_and_enough(given, sentence, missing):
    with pytest.raises(ConfigError, match=rf"^own\.yaml: data\.task.*{sentence}"):
        task_of(given)
    assert task_of(given | missing).name == "own"


def test_a_config_of_messages_told_to_be_none_names_the_override(tmp_path):
    path = tmp_path / "talks.yaml"
    path.write_text("data:\n  path: x\n  task: {name: t, fields: [messages], dialogue: true, chat: true}\n")
    with pytest.raises(ConfigError, match=r"chat has no use with data\.task\.response=null; .*dialogue=true"):
        read_config(path, ["data.task.dialogue=false"])
    with pytest.raises(
        ConfigError, match=r"^override 'data\.task\.dialogue=false': data\.task: neither labels nor response"
    ):
        read_config(path, ["data.task.dialogue=false", "data.task.chat="])
