"""Makes the embedded backbone again: ``python -m fedsim.pretrain [--output FOLDER]``.

The backbone is a tiny RoBERTa (masked language model) with a byte-level BPE tokenizer of its own, so it reads any text
without a download. Both are trained on the documents of :mod:`fedsim.data.pretraining_text`, never on the rows of the
embedded tasks and never with their templates and label words as a question and its answer. With the constants below
the run takes about four minutes on two cores; the same constants give the same files on the same machine and versions.

Training is plain masked language modelling (Devlin et al., arXiv 1810.04805; dynamic masking as in RoBERTa, arXiv
1907.11692): in part of the documents random tokens are hidden, in the others the slot alone.

Shape suffixes: B documents, T tokens, M hidden tokens of a batch, V vocabulary.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

from fedsim.core import seeds
from fedsim.data import lexicon
from fedsim.data.embedded import EMBEDDED_TASKS
from fedsim.data.pretraining_text import OTHER_LABEL_WORDS, Document, documents

BACKBONE_FOLDER = Path(__file__).parent / "assets" / "backbone"
"""Where the repository keeps the embedded backbone."""

SEED = 7
THREADS = 1
"""CPU threads; part of the result's identity."""

VOCABULARY = 2048
TOKENIZER_DOCUMENTS = 20_000
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
MAX_POSITIONS = 192
"""Tokens that fit, those of a shifted prefix included."""

LAYERS, HEADS, HIDDEN, INTERMEDIATE = 4, 4, 64, 128
INITIALIZER_RANGE = 0.1
"""About 1/sqrt(HIDDEN); with the usual 0.02, which suits wider models, a narrow one hardly starts to learn."""
STEPS = 2000
BATCH = 64
LEARNING_RATE = 3e-3
WARMUP_STEPS = 200
WEIGHT_DECAY = 0.01
CLIP_NORM = 1.0

SLOT_RATE = 0.7
"""Share of documents in which the slot alone is hidden; in the others every token with ``MASK_RATE``."""
MASK_RATE = 0.15
KEEP_RATE, RANDOM_RATE = 0.1, 0.1
"""Shares of hidden tokens that are left as they are, or replaced by a random token, instead of ``<mask>``."""
SHIFT_RATE, MAX_SHIFT = 0.3, 32
"""Share of batches whose positions start later, as they do behind a prefix that takes up positions, and how much later."""
POOL_BATCHES = 16
"""Batches drawn together and sorted by length, to save padding."""
REPORT_STEPS = 100


def train_tokenizer(rng: np.random.Generator) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer trained on documents, with RoBERTa's special tokens.

    Raises
    ------
    ValueError
        If a label word or a word of the lexicon is not a single token.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, lstrip=token == "<mask>", special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [str(document) for document in itertools.islice(documents(rng), TOKENIZER_DOCUMENTS)]
    tokenizer.train_from_iterator(texts, trainer)
    start, end = (("<s>", tokenizer.token_to_id("<s>")), ("</s>", tokenizer.token_to_id("</s>")))
    tokenizer.post_processor = processors.RobertaProcessing(end, start, add_prefix_space=True)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        cls_token="<s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="<mask>",
        model_max_length=MAX_POSITIONS,
    )
    _require_single_tokens(fast)
    return fast


def _require_single_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    words = {*OTHER_LABEL_WORDS, *lexicon.AGREE, *lexicon.DISAGREE, *lexicon.POSITIVE, *lexicon.NEGATIVE}
    words.update(itertools.chain(*lexicon.TOPIC_NOUNS.values()))
    words.update(itertools.chain(*(task.label_words or () for task in EMBEDDED_TASKS.values())))
    for word in sorted(words):
        tokens = tokenizer.tokenize(" " + word)
        if len(tokens) != 1:
            raise ValueError(f"the tokenizer cuts {word!r} into {tokens}; raise VOCABULARY")


def new_model(tokenizer: PreTrainedTokenizerFast) -> RobertaForMaskedLM:
    """Return an untrained model that fits the tokenizer; weights come from torch's global stream."""
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=INTERMEDIATE,
        max_position_embeddings=MAX_POSITIONS + tokenizer.pad_token_id + 1,
        type_vocab_size=1,
        initializer_range=INITIALIZER_RANGE,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return RobertaForMaskedLM(config)


@dataclass(frozen=True)
class Batch:
    """Documents with hidden tokens."""

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    position_ids_BT: Tensor
    hidden_BT: Tensor
    """bool; the tokens to be predicted."""
    targets_M: Tensor


class Batches:
    """Endless stream of batches of fresh documents."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator) -> None:
        self._tokenizer = tokenizer
        self._documents = documents(rng)
        self._rng = rng
        self._tokens_of_word: dict[str, list[int]] = {}

    def _encode(self, text: str) -> list[int]:
        """Return the tokens of a text whose words are separated by spaces; words are looked up once."""
        ids: list[int] = []
        for word in text.split():
            if word not in self._tokens_of_word:
                self._tokens_of_word[word] = self._tokenizer.encode(" " + word, add_special_tokens=False)
            ids += self._tokens_of_word[word]
        return ids

    def encode(self, document: Document) -> tuple[list[int], int]:
        """Return a document's tokens and the position of its slot."""
        before = [self._tokenizer.bos_token_id, *self._encode(document.before)]
        after = [*self._encode(document.after), self._tokenizer.eos_token_id]
        return before + self._encode(document.slot) + after, len(before)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            pool = [self.encode(document) for document in itertools.islice(self._documents, BATCH * POOL_BATCHES)]
            pool.sort(key=lambda item: len(item[0]))
            for number in self._rng.permutation(POOL_BATCHES):
                yield self._masked(pool[number * BATCH : (number + 1) * BATCH])

    def _masked(self, encoded: list[tuple[list[int], int]]) -> Batch:
        rng, pad = self._rng, self._tokenizer.pad_token_id
        lengths_B = np.array([len(ids) for ids, _ in encoded])
        ids_BT = np.full((len(encoded), lengths_B.max()), pad)
        hidden_BT = np.zeros(ids_BT.shape, dtype=bool)
        slot_only_B = rng.random(len(encoded)) < SLOT_RATE
        for row, (ids, slot) in enumerate(encoded):
            ids_BT[row, : len(ids)] = ids
            if slot_only_B[row]:
                hidden_BT[row, slot] = True
            else:
                hidden_BT[row, 1 : len(ids) - 1] = rng.random(len(ids) - 2) < MASK_RATE
        shown_BT = ids_BT.copy()
        fate_BT = rng.random(ids_BT.shape)
        shown_BT[hidden_BT & (fate_BT >= KEEP_RATE)] = self._tokenizer.mask_token_id
        random_BT = hidden_BT & (fate_BT >= 1.0 - RANDOM_RATE)
        shown_BT[random_BT] = rng.integers(len(SPECIAL_TOKENS), len(self._tokenizer), int(random_BT.sum()))
        present_BT = np.arange(ids_BT.shape[1])[None, :] < lengths_B[:, None]
        shift = int(rng.integers(1, MAX_SHIFT + 1)) if rng.random() < SHIFT_RATE else 0
        positions_BT = np.where(present_BT, np.arange(ids_BT.shape[1])[None, :] + pad + 1 + shift, pad)
        return Batch(
            torch.from_numpy(shown_BT),
            torch.from_numpy(present_BT.astype(np.int64)),
            torch.from_numpy(positions_BT),
            torch.from_numpy(hidden_BT),
            torch.from_numpy(ids_BT[hidden_BT]),
        )


def masked_loss(model: RobertaForMaskedLM, batch: Batch) -> Tensor:
    """Return the mean cross-entropy over the hidden tokens; the LM head runs at these alone."""
    states_BTE = model.roberta(
        input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, position_ids=batch.position_ids_BT
    ).last_hidden_state
    logits_MV = model.lm_head(states_BTE[batch.hidden_BT])
    return torch.nn.functional.cross_entropy(logits_MV, batch.targets_M)


def _learning_rate(step: int, steps: int) -> float:
    """Return the rate of a step: linear rise, then linear fall to zero."""
    warmup = min(WARMUP_STEPS, max(1, steps // 10))
    return LEARNING_RATE * min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


def train_model(tokenizer: PreTrainedTokenizerFast, steps: int = STEPS) -> tuple[RobertaForMaskedLM, float]:
    """Return a model trained for ``steps`` steps and its mean loss over the last ``REPORT_STEPS`` of them."""
    rng = seeds.stream(SEED, seeds.NO_ROUND, seeds.NO_CLIENT, "pretraining")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = new_model(tokenizer)
    model.eval()  # without dropout: a model this small cannot learn its endless text by heart
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    losses: list[float] = []
    started = time.perf_counter()
    for step, batch in enumerate(itertools.islice(Batches(tokenizer, rng), steps)):
        optimizer.param_groups[0]["lr"] = _learning_rate(step, steps)
        loss = masked_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        losses.append(float(loss.detach()))
        if (step + 1) % REPORT_STEPS == 0:
            recent = np.mean(losses[-REPORT_STEPS:])
            print(f"step {step + 1}/{steps}  loss {recent:.4f}  {time.perf_counter() - started:.0f} s", flush=True)
    return model, float(np.mean(losses[-REPORT_STEPS:]))


def pretrain(output: Path, steps: int = STEPS) -> float:
    """Train tokenizer and model, write both into the folder ``output``, and return the final loss.

    Uses ``THREADS`` threads; torch's global random stream and number of threads are left as they were.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        tokenizer = train_tokenizer(seeds.stream(SEED, seeds.NO_ROUND, seeds.NO_CLIENT, "tokenizer"))
        model, loss = train_model(tokenizer, steps)
    finally:
        torch.set_num_threads(threads)
    tokenizer.save_pretrained(output)
    model.save_pretrained(output)
    return loss


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m fedsim.pretrain", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--output", type=Path, default=BACKBONE_FOLDER, help="folder to write (default: %(default)s)")
    output = parser.parse_args(arguments).output
    loss = pretrain(output)
    size = sum(file.stat().st_size for file in output.iterdir())
    print(f"masked-language-model loss {loss:.4f}; {size / 1e6:.2f} MB written to {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
