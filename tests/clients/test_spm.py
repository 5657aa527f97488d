"""SentencePiece models without a tokenizer.json, trained here: the tokens equal SentencePiece's own."""

import io
import json

import pytest
from transformers import T5Tokenizer

from clients.backbone import model_files
from clients.backbone.loading import load_tokenizer
from clients.config import ModelConfig
from fedsim.core.errors import ModelError
from fedsim.data.config import TaskConfig
from fedsim.data.label_words import label_words

CORPUS = [
    "It was great . It was terrible . It was acceptable .",
    "Yes , No , Yes , it is . No , it is not .",
    "a film about a great and terrible war , and what it was that made the people fight",
    "Déjà vu, naïve café 12345 words",
] * 40
TEXTS = (
    "It was great.",
    "a  film   with spaces",
    "the soup: 北京 😀",
    "tab\there",
    "two\nlines",
    "ﬁne Ａ full",  # noqa: RUF001 - to be normalised
    "12345 0.5",
)
LLAMA = {"model_type": "bpe", "byte_fallback": True, "vocab_size": 500}
T5 = {"model_type": "unigram", "vocab_size": 60, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
PLAIN = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
KINDS = {
    "llama": ("llama", "tokenizer.model", LLAMA | PLAIN),
    "open_llama": ("llama", "tokenizer.model", LLAMA),
    "mistral": ("mistral", "tokenizer.model", LLAMA | PLAIN),
    "mistral, normalised": ("mistral", "tokenizer.model", LLAMA),
    "xlm-roberta": ("xlm-roberta", "sentencepiece.bpe.model", {"model_type": "unigram", "vocab_size": 60}),
    "camembert": ("camembert", "sentencepiece.bpe.model", {"model_type": "unigram", "vocab_size": 60}),
    "t5": ("t5", "spiece.model", T5),
    "mt5": ("mt5", "spiece.model", T5),
}


def make(folder, model_type, name, options):
    """Train a tiny SentencePiece model in a folder; return its own processor."""
    spm = pytest.importorskip("sentencepiece", reason="pip install sentencepiece")
    written = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=written, hard_vocab_limit=False, minloglevel=2, num_threads=1,
        **({"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1} | options),
    )  # fmt: skip
    (folder / name).write_bytes(written.getvalue())
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return spm.SentencePieceProcessor(model_proto=written.getvalue())


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_are_those_of_sentencepiece(tmp_path, kind):
    processor = make(tmp_path, *KINDS[kind])
    tokenizer = load_tokenizer(ModelConfig(path=str(tmp_path)))
    assert tokenizer.is_fast
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        pieces = processor.encode(text, out_type=str)
        expected = ["<unk>" if processor.is_unknown(processor.piece_to_id(piece)) else piece for piece in pieces]
        assert tokenizer.convert_ids_to_tokens(ids) == expected
        if KINDS[kind][0] in ("llama", "mistral"):
            assert ids == processor.encode(text)
            assert tokenizer(text)["input_ids"] == [1, *ids]
        elif kind in ("t5", "mt5"):
            assert tokenizer(text)["input_ids"] == [*ids, tokenizer.eos_token_id]
        else:
            assert tokenizer(text)["input_ids"] == [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]


def test_a_model_that_transformers_does_not_convert_is_not_called_damaged(tmp_path):
    """Of a UMT5, which has a tokenizer.json on the hub; as the sentence says, T5's class makes one."""
    make(tmp_path, "umt5", *KINDS["t5"][1:])
    with pytest.raises(
        ModelError, match=r"does not convert spiece\.model .*; give the folder a tokenizer\.json, .* T5Tokenizer"
    ):
        load_tokenizer(ModelConfig(path=str(tmp_path)))
    ids = T5Tokenizer.from_pretrained(tmp_path)("a great film")["input_ids"]
    T5Tokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert load_tokenizer(ModelConfig(path=str(tmp_path)))("a great film")["input_ids"] == ids


@pytest.mark.parametrize("asked", [True, False])
def test_the_begin_token_is_as_the_tokenizers_configuration_says(tmp_path, asked):
    make(tmp_path, *KINDS["open_llama"])
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "add_bos_token": asked})
    )
    ids = load_tokenizer(ModelConfig(path=str(tmp_path)))("It was great.")["input_ids"]
    assert (ids[0] == 1) == asked


def test_places_of_tokens_are_those_in_the_text(tmp_path):
    """Texts are cut by them."""
    make(tmp_path, *KINDS["open_llama"])
    text = "a   great  film"
    encoded = load_tokenizer(ModelConfig(path=str(tmp_path)))(
        text, return_offsets_mapping=True, add_special_tokens=False
    )
    assert "".join(text[start:stop].strip() for start, stop in encoded["offset_mapping"]) == "agreatfilm"


def test_label_words_are_single_tokens(tmp_path):
    processor = make(tmp_path, *KINDS["open_llama"])
    tokenizer = load_tokenizer(ModelConfig(path=str(tmp_path)))
    task = TaskConfig(
        name="t",
        fields=("text",),
        labels=("0", "1"),
        label_words=("terrible", "great"),
        template="{text} It was <mask> .",
    )
    ids_C = label_words(task, tokenizer, causal=True).single_C
    assert [processor.id_to_piece(token) for token in ids_C.tolist()] == ["▁terrible", "▁great"]


def test_a_conversion_that_is_not_exact_is_refused(tmp_path):
    """Camembert's class splits at every white space, which this model takes for characters."""
    model_type, name, options = KINDS["camembert"]
    make(tmp_path, model_type, name, options | PLAIN)
    with pytest.raises(
        ModelError, match=r"cannot be converted exactly: of .* itself makes .* folder a tokenizer\.json"
    ):
        load_tokenizer(ModelConfig(path=str(tmp_path)))


def test_a_damaged_model_is_named(tmp_path):
    pytest.importorskip("sentencepiece", reason="pip install sentencepiece")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.model").write_bytes(b"torn")
    with pytest.raises(ModelError, match=r"the tokenizer of model .* cannot be read: .*tokenizer\.model") as caught:
        load_tokenizer(ModelConfig(path=str(tmp_path)))
    assert "install" not in str(caught.value)


def test_the_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(model_files, "_is_installed", lambda module: module != "sentencepiece")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.model").write_bytes(b"any")
    with pytest.raises(ModelError, match=r"\(tokenizer\.model\) .*run: pip install 'fedsim\[sentencepiece\]'"):
        load_tokenizer(ModelConfig(path=str(tmp_path)))


def test_packages_are_looked_for_without_importing_them():
    assert model_files._is_installed("json") and model_files._is_installed("google.protobuf")
    assert not model_files._is_installed("no_such_package") and not model_files._is_installed("no_such.package")
