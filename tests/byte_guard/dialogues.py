"""Dialogues in files, in words of the embedded corpus: questions that name a word, and answers that repeat it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

_WORDS = ("good", "bad", "film", "food", "music", "story", "place", "people")
SIZES = {"train": 100, "validation": 20}


def save_dialogues(folder: Path) -> str:
    """Write dialogues of one to three answers each, once; return the folder."""
    if folder.exists():
        return str(folder)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(5)
    for name, size in SIZES.items():
        lines = [json.dumps({"messages": _dialogue(rng)}) for _ in range(size)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder)


def _dialogue(rng: np.random.Generator) -> list[dict[str, str]]:
    messages = []
    for word in rng.choice(_WORDS, rng.integers(1, 4)):
        messages.append({"role": "user", "content": f"how was the {word} ?"})
        messages.append({"role": "assistant", "content": f"the {word} was {rng.choice(_WORDS[:2])} ."})
    return messages
