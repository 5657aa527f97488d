"""Examples that are too long: how many, and how much room would keep them whole; what a run says of them."""

import numpy as np
import pytest

from fedsim.core.tokens import TokenTable
from fedsim.data.config import TaskConfig
from fedsim.data.examples import Examples
from fedsim.data.tasks import TASKS
from fedsim.data.tokenize import tokenize
from fedsim.simulation.cut_notes import cut_notes

THREE = TaskConfig(name="t", fields=("a", "b", "c"), labels=("0", "1"))
WORDY = TaskConfig(
    name="t", fields=("a",), labels=("0", "1"), template="{a} so <mask>", label_words=("no", ("yes", "war and peace"))
)
ANSWERS = TaskConfig(name="t", fields=("q", "r"), template="Q: {q} A:", response="{r}")
KINDS = {
    "masked": ("bert", TASKS["sst2"], "verbalizer"),
    "pair of a template": ("roberta", TASKS["rte"], "verbalizer"),
    "several words": ("gpt2", WORDY, "verbalizer"),
    "one text": ("gpt2", TASKS["sst2"], "classifier"),
    "pair": ("bert", TASKS["rte"], "classifier"),
    "three texts": ("bert", THREE, "classifier"),
    "answers": ("llama", ANSWERS, "generation"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_length_that_is_named_is_the_least_that_keeps_all_whole(tokenizers, kind):
    style, task, head = KINDS[kind]
    rows = [tuple(word * n for word in ("film ", "great ", "war ")[: len(task.fields)]) for n in (60, 9, 1)]

    def encode(rows, limit):
        data = Examples(rows, np.zeros(len(rows), np.int64), origin="somewhere")
        return tokenize(
            data, task, tokenizers[style], head_kind=head, causal=style in ("gpt2", "llama"), max_length=limit
        )

    whole, cut = encode(rows, 4096), encode(rows, 40)
    assert (whole.cut_examples, whole.longest_uncut) == (0, 0) and cut.cut_examples in (1, 2)
    enough, less = encode(rows, cut.longest_uncut), encode(rows, cut.longest_uncut - 1)
    assert (enough.cut_examples, enough.ids_Z.tolist()) == (0, whole.ids_Z.tolist())
    assert (less.cut_examples, less.longest_uncut) == (1, cut.longest_uncut) and len(less.ids_Z) < len(whole.ids_Z)
    alone = [encode([row], 40).ids_Z.tolist() for row in rows]  # whatever is cut beside it
    assert [token for ids in alone for token in ids] == cut.ids_Z.tolist()
    assert cut_notes({"training": whole}, 4096) == ()
    (note,) = cut_notes({"training": cut}, 40)
    assert f"data.max_length=40 tokens, the longest {cut.longest_uncut}: " in note or cut.cut_examples == 1
    assert f"; data.max_length={cut.longest_uncut} keeps" in note


def test_what_is_lost_is_counted_in_words():
    numbers = {
        "ids_Z": np.zeros(3),
        "offsets_N1": np.arange(4),
        "read_positions_N": np.zeros(3),
        "labels_N": np.zeros(3),
    }
    asked = TokenTable(
        **numbers, pad_id=0, response_starts_N=np.zeros(3), cut_examples=1, longest_uncut=70, cut_prompts=1
    )
    texts = TokenTable(**numbers, pad_id=0, cut_examples=2, longest_uncut=99)
    one = TokenTable(**numbers, pad_id=0, cut_examples=1, longest_uncut=80)
    assert cut_notes({"training": asked, "validation": texts, "holdout": one}, 64) == (
        "warning: 1 of 3 training examples has more than data.max_length=64 tokens, with 70: 1 prompt is shortened; "
        "data.max_length=70 keeps it whole, if the model has positions for as many",
        "2 of 3 validation examples have more than data.max_length=64 tokens, the longest 99: their texts are shortened; "
        "data.max_length=99 keeps them whole, if the model has positions for as many",
        "1 of 3 holdout examples has more than data.max_length=64 tokens, with 80: its text is shortened; "
        "data.max_length=80 keeps it whole, if the model has positions for as many",
    )
