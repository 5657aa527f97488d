"""Check the conversion, by transformers, of SentencePiece tokenizers without a tokenizer.json, such as OpenLLaMA's.

transformers silently drops parts of such a model: LLaMA's class drops its normalisation (repeated spaces, Unicode forms);
the generic class, used for Mistral's files and for LLaMA's without a tokenizer_config.json, drops the space before the
first word and the begin token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import LlamaTokenizer, PreTrainedTokenizerBase, TokenizersBackend

from clients.backbone.model_files import read_json
from fedsim.core.errors import ModelError, shown

_PROBES = ("It was great.", "a  film   with spaces", "Naïve déjà vu, 12.5 %", "ﬁne Ａ ½ 北京 😀", "two\nlines")  # noqa: RUF001
_BPE = 2
"""``model_type`` of a SentencePiece model that merges pairs."""


def exact(tokenizer: PreTrainedTokenizerBase, file: Path, name: str) -> PreTrainedTokenizerBase:
    """Return a converted tokenizer that encodes exactly like SentencePiece.

    Parameters
    ----------
    tokenizer
        As converted by transformers; slow tokenizers are returned unchanged.
    file
        The SentencePiece model.
    name
        Model name for errors.

    Raises
    ------
    ModelError
        If it cannot be corrected.
    """
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

    if not tokenizer.is_fast:
        return tokenizer
    description = sentencepiece_model_pb2.ModelProto.FromString(file.read_bytes())  # type: ignore[attr-defined]
    is_bpe = description.trainer_spec.model_type == _BPE
    if isinstance(tokenizer, LlamaTokenizer) or (type(tokenizer) is TokenizersBackend and is_bpe):
        asked = "add_bos_token" in read_json(file.with_name("tokenizer_config.json"))
        more: dict[str, Any] = {} if asked else {"add_bos_token": True}
        tokenizer = LlamaTokenizer.from_pretrained(file.parent, **more)
    processor = SentencePieceProcessor(model_file=str(file))
    if _difference(tokenizer, processor) is not None:
        _normalise(tokenizer, description.normalizer_spec)
    if (found := _difference(tokenizer, processor)) is not None:
        text, ours, theirs = found
        raise ModelError(
            f"the tokenizer of model {name} cannot be converted exactly: of {text!r} {file.name} itself makes {shown(theirs)}, "
            f"and transformers {shown(ours)}; give the folder a tokenizer.json"
        )
    return tokenizer


def unread(file: Path) -> str:
    """Return why transformers reads no tokenizer from a SentencePiece model."""
    from sentencepiece import SentencePieceProcessor

    try:
        SentencePieceProcessor(model_file=str(file))
    except (RuntimeError, OSError):
        return f"{file.name} is not a SentencePiece model, or is damaged"
    return (
        f"transformers does not convert {file.name} for a model of this type; give the folder a tokenizer.json, which "
        "save_pretrained of a tokenizer class that reads the file writes (for a umt5: T5Tokenizer)"
    )


def _difference(tokenizer: PreTrainedTokenizerBase, processor: Any) -> tuple[str, list[str], list[str]] | None:
    """Return the first probe that both encode differently, with the tokens, or None."""
    for text in _PROBES:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        ours = [str(token) for token in tokenizer.convert_ids_to_tokens(ids)]
        pieces = processor.encode(text, out_type=str)
        theirs = [
            str(tokenizer.unk_token) if processor.is_unknown(processor.piece_to_id(piece)) else piece
            for piece in pieces
        ]
        if ours != theirs:
            return text, ours, theirs
    return None


def _normalise(tokenizer: PreTrainedTokenizerBase, spec: Any) -> None:
    """Set a converted tokenizer's normalisation to that of the SentencePiece model."""
    from tokenizers import Regex, normalizers

    backend = tokenizer.backend_tokenizer
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if backend.normalizer is not None:
        steps.append(backend.normalizer)
    if steps:
        backend.normalizer = normalizers.Sequence(steps)
