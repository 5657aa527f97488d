"""``data.validation_from_train``: settings are chosen on examples that are neither trained on nor reported."""

import json
import shutil
from pathlib import Path

import pytest

from fedsim.configuration.schema import Config
from fedsim.core.errors import DataError
from fedsim.data.config import DataConfig
from fedsim.data.sources import load_dataset

LAYOUTS = Path(__file__).parent / "layouts"


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows(number, kind):
    return [{"text": f"{kind} {i}", "label": i % 2, "author": f"a{i % 3}"} for i in range(number)]


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "data" / "train.jsonl", rows(40, "train"))
    write(tmp_path / "data" / "validation.jsonl", rows(10, "validation"))
    return tmp_path / "data"


@pytest.fixture
def source(request, folder, tmp_path, monkeypatch):
    """Keys of a source by its name."""
    if request.param == "hub":
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return {
        "embedded": {"task": "topics"},
        "files": {"task": "sst2", "path": str(folder)},
        "hub": {"task": "sst2", "source": "hub", "hub_name": str(folder)},
        "held out": {"task": "sst2", "path": str(folder), "holdout": 0.25},
        "published without a split": {"task": "subj", "path": str(LAYOUTS / "rotten_imdb")},
    }[request.param]


def load(keys, seed=0, column=None, **more):
    return load_dataset(DataConfig(**{**keys, **more}), seed, column)


def texts(dataset):
    return dataset.train.texts, dataset.validation.texts


@pytest.mark.parametrize("source", ["embedded", "files", "hub", "held out", "published without a split"], indirect=True)
def test_the_training_examples_are_split_and_those_reported_are_in_neither_part(source):
    whole, split = load(source, 3), load(source, 3, validation_from_train=0.25)
    train, validation = texts(split)
    assert sorted(train + validation) == sorted(whole.train.texts)
    assert not set(train) & set(validation)
    assert len(validation) == int(0.25 * len(whole.train) + 0.5)
    assert not set(whole.validation.texts) & {*train, *validation}
    by_text = dict(zip(whole.train.texts, whole.train.labels_N.tolist(), strict=True))
    for part in (split.train, split.validation):
        assert [by_text[text] for text in part.texts] == part.labels_N.tolist()
    assert texts(load(source, 3, validation_from_train=0.25)) == (train, validation)
    assert texts(load(source, 4, validation_from_train=0.25)) != (train, validation)


def test_the_training_examples_are_cut_first(folder):
    keys = {"task": "sst2", "path": str(folder), "train_examples": 20}
    cut = load(keys)
    train, validation = texts(load(keys, validation_from_train=0.3))
    assert sorted(train + validation) == sorted(cut.train.texts) and len(validation) == 6
    assert texts(load(keys, validation_from_train=0.3, validation_examples=1000)) == (train, validation)


@pytest.mark.parametrize("state", ["missing", "broken", "unlabelled test", "two of them"])
def test_the_validation_file_is_never_read(folder, state):
    keys = {"task": "sst2", "path": str(folder), "validation_from_train": 0.2}
    before = texts(load(keys))
    file = folder / "validation.jsonl"
    if state == "broken":
        file.write_bytes(b"\xff{")
    elif state == "two of them":
        (folder / "validation.csv").write_text("x")
    else:
        file.unlink()
    if state == "unlabelled test":
        write(folder / "test.jsonl", [{"text": "x", "label": -1}])
    assert texts(load(keys)) == before
    if state != "broken":
        assert texts(load(keys, validation_file="elsewhere.jsonl")) == before


def test_the_split_of_a_card_is_not_looked_for(tmp_path):
    shutil.copytree(LAYOUTS / "hub", tmp_path / "hub")
    keys = {"task": "sst2", "path": str(tmp_path / "hub"), "validation_from_train": 0.3}
    before = texts(load(keys))
    files = list((tmp_path / "hub").rglob("validation*"))
    assert files
    for file in files:
        file.unlink()
    assert texts(load(keys)) == before


def test_files_of_one_class_for_validation_are_not_trained_on(tmp_path):
    for name in ("train_good", "train_bad", "test_good", "test_bad"):
        (tmp_path / f"{name}.txt").write_text("".join(f"{name} {i}\n" for i in range(5)))
    keys = {"task": "sst2", "path": str(tmp_path), "label_of_file": {"*_good.txt": 1, "*_bad.txt": 0}}
    train, validation = texts(load(keys, validation_from_train=0.2))
    assert len(validation) == 2 and all(text.startswith("train") for (text,) in train + validation)


def test_natural_clients_keep_their_column(folder):
    keys = {"task": "sst2", "path": str(folder)}
    author = {(row["text"],): row["author"] for row in rows(40, "train")}
    train = load(keys, column="author", validation_from_train=0.25).train
    assert train.columns["author"] == [author[text] for text in train.texts]


def test_too_few_examples_are_refused(folder):
    keys = {"task": "sst2", "path": str(folder), "train_examples": 4}
    for share, many in ((0.1, 0), (0.9, 4)):
        sentence = rf"data\.validation_from_train: {share} of the 4 examples of .*train\.jsonl are {many}; training and"
        with pytest.raises(DataError, match=sentence):
            load(keys, validation_from_train=share)


def test_it_is_part_of_what_a_run_is():
    assert Config(data={"validation_from_train": 0.2}).identity != Config().identity
    assert Config(data={"validation_from_train": None}).identity == Config().identity
