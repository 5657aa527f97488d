"""Pretrain the embedded backbone: ``python -m fedsim.assets.pretraining [--output FOLDER]``.

The backbone is a tiny RoBERTa (masked language model) with a byte-level BPE tokenizer of its own, so it reads any text
and needs no download. Both are trained on the documents of :mod:`fedsim.assets.pretraining.text`. The same constants give the
same files on the same machine with the same versions of torch and tokenizers; a run takes about five minutes on one core.

The documents come from the same grammar as the embedded tasks, by other authors and from other random streams, and after
a cue they ask the tasks' questions in other words (a task's label words are never the answer). A score on an embedded
task therefore shows that prompts are tuned and aggregated correctly; it shows nothing about language understanding, or about
how methods rank on real text. Rows of the tasks are not filtered out: with the constants below, of 230,400 documents
none repeats a validation text and five repeat a training text.

Training is plain masked language modelling (Devlin et al., arXiv 1810.04805) with masks redrawn for every batch
(RoBERTa, arXiv 1907.11692): in some documents random tokens are hidden, in most the slot alone.

Shape suffixes: B documents, T tokens, E hidden size, M hidden tokens of a batch, V vocabulary.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

from fedsim.assets.pretraining.batches import Batch, Masking, batches
from fedsim.assets.pretraining.embeddings import word_vectors
from fedsim.assets.pretraining.text import documents
from fedsim.assets.pretraining.tokenizer import train_tokenizer
from fedsim.core import seeds

BACKBONE_FOLDER = Path(__file__).parents[1] / "backbone"
"""Folder of the embedded backbone in the repository."""

SEED = 7
THREADS = 1
"""CPU threads, on which the resulting bytes depend. Matrices this small gain little from more."""

VOCABULARY = 2048
"""Upper bound on the vocabulary; the corpus needs fewer tokens."""
TOKENIZER_DOCUMENTS = 20_000
MAX_POSITIONS = 192
"""Positions, including those of a shifted prefix."""

LAYERS, HEADS, HIDDEN, INTERMEDIATE = 4, 4, 64, 128
INITIALIZER_RANGE = 0.1
"""About 1/sqrt(HIDDEN); with the usual 0.02, meant for wide models, a narrow one hardly starts to learn."""
POSITION_SCALE = 0.4
"""Scale of initial position embeddings: small, so that words matter first."""
COUNTED_DOCUMENTS = 20_000
"""Documents in which co-occurrences are counted for the first word embeddings."""

STEPS = 3600
BATCH = 64
LEARNING_RATE = 1.5e-3
WARMUP_STEPS = 100
WEIGHT_DECAY = 0.01
CLIP_NORM = 1.0
MASKING = Masking(slot_rate=0.8, token_rate=0.15, keep_rate=0.1, random_rate=0.1, shift_rate=0.3, max_shift=32)
REPORT_STEPS = 100


def _stream(purpose: str) -> np.random.Generator:
    return seeds.stream(SEED, seeds.NO_ROUND, seeds.NO_CLIENT, f"pretraining/{purpose}")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer, trained on documents."""
    texts = (str(document) for document in itertools.islice(documents(_stream("tokenizer")), TOKENIZER_DOCUMENTS))
    return train_tokenizer(texts, VOCABULARY, MAX_POSITIONS)


def new_model(tokenizer: PreTrainedTokenizerFast) -> RobertaForMaskedLM:
    """Return the model before training; torch's global random stream is left as it was."""
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=INTERMEDIATE,
        max_position_embeddings=MAX_POSITIONS + tokenizer.pad_token_id + 1,  # RoBERTa counts positions from there
        type_vocab_size=1,
        initializer_range=INITIALIZER_RANGE,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = RobertaForMaskedLM(config)
    vectors_VE = word_vectors(tokenizer, HIDDEN, INITIALIZER_RANGE, COUNTED_DOCUMENTS, _stream("vectors"))
    with torch.no_grad():
        model.roberta.embeddings.word_embeddings.weight.copy_(vectors_VE)
        model.roberta.embeddings.position_embeddings.weight.mul_(POSITION_SCALE)
    return model


def masked_loss(model: RobertaForMaskedLM, batch: Batch) -> Tensor:
    """Return the mean cross-entropy over the masked tokens; the LM head runs only there."""
    states_BTE = model.roberta(
        input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, position_ids=batch.position_ids_BT
    ).last_hidden_state
    logits_MV = model.lm_head(states_BTE[batch.hidden_BT])
    return torch.nn.functional.cross_entropy(logits_MV, batch.targets_M)


def _learning_rate(step: int, steps: int) -> float:
    """Return the learning rate of a step: linear warm-up, then linear decay to zero."""
    warmup = max(1, min(WARMUP_STEPS, steps // 10))
    return LEARNING_RATE * min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


def train(model: RobertaForMaskedLM, tokenizer: PreTrainedTokenizerFast, steps: int) -> float:
    """Train for ``steps`` steps and return the mean loss over the last ``REPORT_STEPS`` of them."""
    model.eval()  # no dropout: a model this small cannot memorise endless text
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    losses: list[float] = []
    started = time.perf_counter()
    for step, batch in enumerate(itertools.islice(batches(tokenizer, BATCH, MASKING, _stream("batches")), steps)):
        optimizer.param_groups[0]["lr"] = _learning_rate(step, steps)
        loss = masked_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        losses.append(float(loss.detach()))
        if (step + 1) % REPORT_STEPS == 0:
            seconds = time.perf_counter() - started
            print(f"step {step + 1}/{steps}  loss {np.mean(losses[-REPORT_STEPS:]):.4f}  {seconds:.0f} s", flush=True)
    return float(np.mean(losses[-REPORT_STEPS:]))


def pretrain(output: Path, steps: int = STEPS) -> float:
    """Train tokenizer and model, write both into the folder ``output``, and return the final loss.

    Uses ``THREADS`` threads; torch's number of threads and global random stream are left as they were.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        tokenizer = make_tokenizer()
        model = new_model(tokenizer)
        loss = train(model, tokenizer, steps)
    finally:
        torch.set_num_threads(threads)
    tokenizer.save_pretrained(output)
    model.save_pretrained(output)
    return loss


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m fedsim.assets.pretraining", description="Pretrain the embedded backbone."
    )
    parser.add_argument("--output", type=Path, default=BACKBONE_FOLDER, help="folder to write (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps (default: %(default)s)")
    options = parser.parse_args(arguments)
    loss = pretrain(options.output, options.steps)
    size = sum(file.stat().st_size for file in options.output.iterdir())
    print(f"loss {loss:.4f}; {size / 1e6:.2f} MB written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
