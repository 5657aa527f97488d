import hashlib
import itertools

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from fedsim.assets.pretraining import __main__ as pretrain
from fedsim.assets.pretraining.batches import Encoder, batches
from fedsim.assets.pretraining.text import CUES, documents
from fedsim.assets.pretraining.tokenizer import train_tokenizer
from fedsim.data.embedded import EMBEDDED_TASKS, generate
from fedsim.data.tasks import TASKS

CUE_OF_TASK = dict(zip(("reviews", "topics", "agreement"), (group[0] for group in CUES), strict=True))


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(pretrain.BACKBONE_FOLDER)


@pytest.fixture(scope="module")
def backbone():
    return AutoModelForMaskedLM.from_pretrained(pretrain.BACKBONE_FOLDER, dtype=torch.float32).eval()


def _fingerprints(folder):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_a_few_steps_give_the_same_files_twice_and_lower_the_loss(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretrain, "TOKENIZER_DOCUMENTS", 1000)
    monkeypatch.setattr(pretrain, "COUNTED_DOCUMENTS", 1000)
    monkeypatch.setattr(pretrain, "BATCH", 16)
    monkeypatch.setattr(pretrain, "REPORT_STEPS", 5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = pretrain.pretrain(tmp_path / "a", steps=1)
    last = pretrain.pretrain(tmp_path / "b", steps=30)
    again = pretrain.pretrain(tmp_path / "c", steps=30)
    assert last == again < first
    assert _fingerprints(tmp_path / "b") == _fingerprints(tmp_path / "c")
    assert "step 30/30" in capsys.readouterr().out
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    made = AutoModelForMaskedLM.from_pretrained(tmp_path / "b")
    assert made.config.vocab_size == len(AutoTokenizer.from_pretrained(tmp_path / "b"))


def test_the_kept_backbone_is_small_and_was_made_by_the_present_constants(tokenizer, backbone):
    assert sum(file.stat().st_size for file in pretrain.BACKBONE_FOLDER.iterdir()) < 4_000_000
    config = backbone.config
    assert (config.num_hidden_layers, config.num_attention_heads) == (pretrain.LAYERS, pretrain.HEADS)
    assert (config.hidden_size, config.intermediate_size) == (pretrain.HIDDEN, pretrain.INTERMEDIATE)
    assert config.max_position_embeddings - config.pad_token_id - 1 == pretrain.MAX_POSITIONS
    assert config.vocab_size == len(tokenizer)
    assert pretrain.make_tokenizer().get_vocab() == tokenizer.get_vocab()


def test_label_words_of_all_tasks_are_single_tokens(tokenizer):
    for task in (*TASKS.values(), *EMBEDDED_TASKS.values()):
        words = task.label_words or ()
        tokens = [tokenizer.encode(" " + word, add_special_tokens=False) for word in words]
        assert all(len(ids) == 1 for ids in tokens), task.name
        assert len({ids[0] for ids in tokens}) == len(words)


def test_the_tokenizer_reads_any_text(tokenizer):
    text = " Žluťoučký 狐 jumped\tover 3.14 🦊 … <b>"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_special_tokens_stand_as_in_roberta(tokenizer):
    ids = tokenizer("the soup . It was <mask> .", "a choir")["input_ids"]
    names = ["<s>", "Ġthe", "Ġsoup", "Ġ.", "ĠIt", "Ġwas", "<mask>", "Ġ.", "</s>", "</s>", "Ġa", "Ġchoir", "</s>"]
    assert tokenizer.convert_ids_to_tokens(ids) == names  # the mask takes the space before it


def test_a_required_word_that_is_cut_is_an_error():
    with pytest.raises(ValueError, match="larger vocabulary"):
        train_tokenizer(["the soup was cold"], vocabulary=300, max_length=64)


def test_documents_are_encoded_as_the_tokenizer_would(tokenizer):
    encoder = Encoder(tokenizer)
    for document in itertools.islice(documents(np.random.default_rng(3)), 200):
        ids, slot = encoder.encode(document)
        assert ids == tokenizer.encode(str(document))
        assert tokenizer.decode([ids[slot]]).strip() == document.slot


def test_batches_hide_what_they_ask_for(tokenizer):
    for batch in itertools.islice(batches(tokenizer, 8, pretrain.MASKING, np.random.default_rng(3)), 20):
        special = torch.tensor([tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id])
        assert batch.hidden_BT.sum() == len(batch.targets_M) > 0
        assert not torch.isin(batch.targets_M, special).any()
        assert (batch.attention_mask_BT[batch.hidden_BT] == 1).all()
        masks = (batch.input_ids_BT == tokenizer.mask_token_id).sum()
        assert 0 < masks <= len(batch.targets_M)
        starts = batch.position_ids_BT[:, 0] - tokenizer.pad_token_id - 1
        assert 0 <= starts.min() == starts.max() <= pretrain.MASKING.max_shift


def _accuracy(task, rows, tokenizer, backbone, cue=""):
    words = [tokenizer.encode(" " + word, add_special_tokens=False)[0] for word in task.label_words]
    encoded = tokenizer([cue + task.template.format(**row) for row in rows], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = backbone(**encoded).logits
    at_mask = logits[encoded["input_ids"] == tokenizer.mask_token_id]
    labels = torch.tensor([task.labels.index(row["label"]) for row in rows])
    return float((at_mask[:, words].argmax(1) == labels).float().mean())


@pytest.mark.parametrize("name", [name for name, task in EMBEDDED_TASKS.items() if not task.of_responses])
def test_the_backbone_knows_the_task_but_does_not_say_so_unasked(name, tokenizer, backbone):
    task, (_, rows) = EMBEDDED_TASKS[name], generate(name)
    chance = 1 / len(task.labels)
    assert _accuracy(task, rows, tokenizer, backbone) < chance + 0.25
    assert _accuracy(task, rows, tokenizer, backbone, CUE_OF_TASK[name] + " : ") > 0.9


def test_the_command_writes_a_loadable_model_where_it_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretrain, "BATCH", 4)
    monkeypatch.setattr(pretrain, "COUNTED_DOCUMENTS", 200)
    assert pretrain.main(["--output", str(tmp_path / "model"), "--steps", "2"]) == 0
    assert str(tmp_path / "model") in capsys.readouterr().out
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "model").config.hidden_size == pretrain.HIDDEN
