"""Kept tokens are those that would be made, whatever was kept before."""

import dataclasses
import shutil
from functools import partial
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from support import make_tiny

from clients.backbone.loading import load_tokenizer
from clients.backbone.location import locate
from clients.config import ModelConfig
from fedsim.data.examples import Examples
from fedsim.data.tasks import resolve_task
from fedsim.data.tokenize import tokenize
from fedsim.kept import digest
from fedsim.kept import kept as module
from fedsim.kept.config import CacheConfig
from fedsim.kept.kept import Kept
from fedsim.kept.store import Record, entries
from fedsim.kept.tokens import kept_tokens, state_of
from fedsim.simulation.preparation import prepare

TASK = resolve_task("reviews")
SETTINGS = {"head_kind": "verbalizer", "causal": False, "max_length": 24}


def tokenizer(**settings):
    made = load_tokenizer(ModelConfig())
    for name, value in settings.items():
        setattr(made, name, value)
        made.init_kwargs[name] = value
    return made


def made(kept, examples, task=TASK, of=tokenizer, **settings):
    """Return tokens by way of the cache, and whether they were computed."""
    fresh, computed, settings = of(), [], {**SETTINGS, **settings}
    state = state_of(fresh)

    def compute():
        computed.append(tokenize(examples, task, fresh, **settings))
        return computed[0]

    return kept_tokens(kept, examples, task, state, settings, compute), bool(computed)


def equal(one, other):
    return all(
        np.array_equal(a, b) and getattr(a, "dtype", None) == getattr(b, "dtype", None)
        for a, b in ((getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one))
    )


def some(texts, labels=None):
    return Examples([(text,) for text in texts], np.array(labels or [0] * len(texts)), origin="here")


def cache(folder):
    return Kept.of(CacheConfig(folder=str(folder)))


TEXTS = st.sampled_from(["a good film", "a good  film", "bad", "a bad one"])
SPLITS = st.lists(st.tuples(TEXTS, st.integers(0, 1)), min_size=1, max_size=3)


@settings(max_examples=30)
@given(st.lists(st.tuples(SPLITS, st.sampled_from([16, 24])), min_size=2, max_size=5))
def test_one_cache_for_many_splits_gives_each_its_own_tokens(tmp_path_factory, runs):
    kept, seen = cache(tmp_path_factory.mktemp("cache")), []
    for split, length in runs:
        examples = some([text for text, _ in split], [label for _, label in split])
        table, computed = made(kept, examples, max_length=length)
        assert equal(table, tokenize(examples, TASK, tokenizer(), **{**SETTINGS, "max_length": length}))
        assert computed == ((split, length) not in seen)
        seen.append((split, length))


CHANGES = {
    "a text": {"examples": some(["a good film", "bad!"])},
    "a label": {"examples": some(["a good film", "bad"], [0, 1])},
    "the order": {"examples": some(["bad", "a good film"])},
    "the template": {"task": TASK.model_copy(update={"template": "It is <mask>. {text}"})},
    "max_length": {"max_length": 12},
    "the head": {"head_kind": "classifier"},
    "decoder": {"causal": True},
    "the tokenizer": {"of": lambda: tokenizer(truncation_side="left")},
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_tokens_depend_on_changes_the_key(tmp_path, change):
    kept, examples = cache(tmp_path), some(["a good film", "bad"])
    assert made(kept, examples)[1] and not made(kept, examples)[1]
    assert made(kept, **{"examples": examples, **CHANGES[change]})[1]
    assert not made(kept, **{"examples": examples, **CHANGES[change]})[1] and not made(kept, examples)[1]


def test_where_a_tokenizer_lies_does_not_count(tmp_path):
    for name in ("here", "there"):
        tokenizer().save_pretrained(tmp_path / name)
        shutil.copy(Path(locate(ModelConfig())) / "config.json", tmp_path / name)
    here, there = (partial(load_tokenizer, ModelConfig(path=str(tmp_path / name))) for name in ("here", "there"))
    kept, examples = cache(tmp_path / "cache"), some(["a good film"])
    assert made(kept, examples, of=here)[1] and not made(kept, examples, of=there)[1]
    assert not made(kept, examples, of=here)[1]


def test_another_version_makes_them_anew(tmp_path, monkeypatch):
    kept, examples = cache(tmp_path), some(["a good film"])
    assert made(kept, examples)[1]
    before = digest.code()
    for name in before:
        monkeypatch.setattr(module, "code", lambda name=name: {**before, name: "another"})
        assert made(kept, examples)[1]


def test_a_whole_entry_with_other_contents_is_made_again(tmp_path):
    """Such as one that somebody wrote with the right checksum: its arrays have to fit each other and the examples."""
    kept, examples = cache(tmp_path), some(["a good film", "bad"])
    table, _ = made(kept, examples)
    (entry,) = entries(tmp_path)
    key = entry.path.name.removeprefix("tokens-").removesuffix(".kept")
    arrays = {name: getattr(table, name) for name in ("ids_Z", "offsets_N1", "read_positions_N", "labels_N")}
    for change in (
        {"ids_Z": table.ids_Z[:-1]},
        {"labels_N": table.labels_N[:1]},
        {"ids_Z": table.ids_Z.astype(np.int64)},
        {"more": table.ids_Z},
        {"response_starts_N": table.read_positions_N[:1]},
    ):
        kept._store.write("tokens", key, Record({"pad_id": 1}, {**arrays, **change}), "")
        again, computed = made(kept, examples)
        assert computed and equal(again, table)


def test_code_of_a_models_own_is_not_described():
    theirs = tokenizer()

    class Theirs(type(theirs)):
        pass

    theirs.__class__ = Theirs
    assert state_of(theirs) is None and state_of(tokenizer()) is not None


def test_where_responses_start_is_kept(tmp_path):
    examples = some(["a good film", "bad"])
    table = tokenize(examples, TASK, tokenizer(), **SETTINGS)
    table = dataclasses.replace(table, response_starts_N=table.read_positions_N - 1)
    state = state_of(tokenizer())
    for compute in (lambda: table, lambda: pytest.fail("the tokens are kept")):
        assert equal(kept_tokens(cache(tmp_path), examples, TASK, state, SETTINGS, compute), table)


def test_label_words_are_those_of_the_task_whether_its_tokens_were_kept_or_not(tmp_path):
    words = {"label_words": ["not great", ["great", "very good"]]}
    config = make_tiny(data={"task": {**TASK.model_dump(mode="json"), **words}, "train_examples": 60})
    tables = []
    for _ in range(2):
        prepared = prepare(config, kept=cache(tmp_path))
        tables.append(prepared.spec.train)
    first, second = tables
    assert prepared.kept.summary()["taken"]["tokens"] == 2
    assert first.words.words == second.words.words and max(map(len, first.words.words)) > 1
    assert equal(dataclasses.replace(first, words=None), dataclasses.replace(second, words=None))
