"""The README.md of an exported adapter: how to use it, and how class scores are read or responses written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftConfig

from clients.backbone.families import Family
from clients.backbone.heads import resolve_pooling
from fedsim.core.uses import EVERY_KEY
from fedsim.data.config import TaskConfig
from fedsim.data.templates import MASK, Piece, parse_template
from fedsim.prompts.provenance.escaping import code, indented, inline

_LOAD = """\
# {title}

{trained} trained by fedsim for the task {task}: {what}.{labels}

```python
import torch
from peft import {peft}
from transformers import {auto}

{name}base = {auto}.from_pretrained({base}, dtype=torch.float32)
model = PeftModel.from_pretrained(base, "path/to/this/folder").eval()
output = model(input_ids=input_ids, attention_mask=attention_mask)
```

{calls}
"""

_BASE_BY_CONFIG = 'name = PeftConfig.from_pretrained("path/to/this/folder").base_model_name_or_path\n'

_PRODUCTS = """\
The run multiplied the layers' matrices in bfloat16 (`model.products`); in float32 scores differ a little from the run's.
"""

_WORDS = """\
A class's score is the logit of its label word, {words}, in `output.logits{text}` at the {place}. The text is written

{template}

and the label word is the one token that the tokenizer makes of it in that place, with the space before it. Where instead a
class has several words, or the tokenizer makes several tokens of one, {several} A class's score is the mean over its words of
the {mean} of a word's tokens (`log_softmax` of the logits).
"""

_MASKED = "Give every call an `attention_mask`."
_IN_BRANCHES = "each word is written behind the text, and each of its tokens is scored in the row before it."
_AT_MASKS = (
    "the text has as many masks as the longest word has tokens, and a word of n tokens is read at the first n masks."
)
_STEPWISE = (
    "a word of n tokens is read in a text of its own with n masks: the mask whose token of the word is the most likely is "
    "filled with it, and the model runs again, until all are filled."
)
_WORD_END = """\
The text `{end}` behind a word is scored with it; `<eos>` stands for the tokenizer's end token.
"""
_CALIBRATED = """\
From each class's score that of the base model without this adapter is subtracted, for the text with empty fields.
"""

_RESPONSES = """\
The model writes a response behind a prompt, token by token, up to its end token:

```python
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({base}, padding_side="left")
batch = tokenizer({texts}, return_tensors="pt", padding=True{special})
written = model.generate(**batch, max_new_tokens=64, do_sample=False)[:, batch["input_ids"].shape[1]:]
print(tokenizer.batch_decode(written, skip_special_tokens=True))
```

Here `prompts` is a list of {several}. {prompt}
"""
_TURNS = '[tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)\n'
_CHATS = f"{_TURNS}         for prompt in prompts]"

_HEAD = """\
A class's score comes from the trained head in `head.safetensors`:

```python
from safetensors.torch import load_file

head = load_file("path/to/this/folder/head.safetensors")
hidden = output.last_hidden_state{text}
{pool}
scores = pooled @ head["head.weight"].T + head["head.bias"]
```
"""

_POOL = {
    "first": "pooled = hidden[:, 0]",
    "mean": "weight = attention_mask.unsqueeze(2)\npooled = (hidden * weight).sum(1) / weight.sum(1)",
    "last": "last = attention_mask.sum(1) - 1  # padding on the right\npooled = hidden[torch.arange(len(hidden)), last]",
}


@dataclass(frozen=True)
class AboutAdapter:
    """What the README of one kind of adapter says about it."""

    title: str
    trained: str
    """Subject of the first sentence: what was trained."""
    what: str
    """Its size and place."""
    calls: str
    """What a call of the model must heed."""
    token_types: str
    """How token types reach the model."""
    pads: bool = False
    """Whether texts may be padded on either side."""
    before: int = 0
    """Rows of the output before those of the text."""

    @property
    def text(self) -> str:
        """What selects the text's rows of the output."""
        return f"[:, {self.before}:]" if self.before else ""


def hub_name(adapter: PeftConfig) -> str | None:
    """Return the base model's name on the Hugging Face hub, or None for a folder."""
    base = str(adapter.base_model_name_or_path)
    return None if (Path(base) / "config.json").is_file() else base


def readme(
    metadata: Mapping[str, Any], adapter: PeftConfig, family: Family, about: AboutAdapter, *, token_types: bool
) -> str:
    """Return the README text of an adapter.

    Parameters
    ----------
    metadata
        Metadata of the exported prompt file.
    token_types
        Whether the model tells the texts of an example apart by token types.
    """
    hub = hub_name(adapter)
    task, head = TaskConfig.model_validate(metadata["task"], context=EVERY_KEY), metadata["model"]["head"]
    classifier = head["kind"] == "classifier"
    auto = "AutoModel" if classifier else f"AutoModelFor{'CausalLM' if family.predicts_next else 'MaskedLM'}"
    if family.encoder_alone:  # of which AutoModel would load the decoder, too
        auto = family.model_class("base").__name__
    parts = [
        _LOAD.format(
            title=about.title,
            trained=about.trained,
            task=code(task.name),
            what=about.what,
            calls=_MASKED if task.of_responses and about.pads else about.calls,
            labels="" if task.of_responses else f" Labels: {', '.join(map(inline, task.labels))}.",
            auto=auto,
            # A path is of this machine alone; adapter_config.json holds it for PEFT.
            peft="PeftModel" if hub else "PeftConfig, PeftModel",
            name="" if hub else _BASE_BY_CONFIG,
            base=repr(hub) if hub else "name",
        )
    ]
    if metadata["model"].get("products") == "bfloat16":
        parts.append(_PRODUCTS)
    if classifier:
        if token_types:
            parts.append(about.token_types)
        pool = _POOL[resolve_pooling(head["pooling"], family)]
        parts.append(_HEAD.format(pool=pool, text=about.text))
    elif task.of_responses:
        texts, special = (_CHATS, ", add_special_tokens=False") if task.chat else ("prompts", "")
        several = "texts, padded on the left" if about.pads else "one text, since padding would move it"
        named = {"base": repr(hub) if hub else "name", "texts": texts, "special": special, "several": several}
        parts.append(_RESPONSES.format(prompt=_prompts(task), **named))
    else:
        stepwise = head.get("decoding") == "stepwise"
        parts.append(_label_words(task, family, about.text, stepwise=stepwise))
        if task.word_end is not None:
            parts.append(_WORD_END.format(end=task.word_end))
        if head.get("calibration") == "empty_text":
            parts.append(_CALIBRATED)
    return "\n".join(parts)


def _prompts(task: TaskConfig) -> str:
    """Describe the prompts of a task of responses."""
    if task.dialogue:
        return "The prompt is a conversation, written by the tokenizer's chat template."
    if task.template is None:
        return "There is no prompt: the model learnt to write texts from their first token on."
    how = "The prompt is a user's message in the tokenizer's chat template" if task.chat else "The prompt is"
    parts = [f"{how}:\n\n{indented(task.template)}"]
    for name, template in task.template_without.items():
        parts.append(f"or, without {inline(name)}:\n\n{indented(template)}")
    return "\n\n".join(parts)


def _label_words(task: TaskConfig, family: Family, rows: str, *, stepwise: bool) -> str:
    template = parse_template(task)
    pieces: tuple[Piece, ...] = (*template.before, MASK, *template.after)
    if family.predicts_next:
        pieces = template.as_causal().before
    text = "".join(piece if isinstance(piece, str) else f"{{{task.fields[piece.index]}}}" for piece in pieces)
    words = ", ".join(" or ".join(map(inline, own)) for own in task.words_of_classes)
    place, several = ("last token", _IN_BRANCHES) if family.predicts_next else ("mask", _AT_MASKS)
    several, mean = (_STEPWISE, "summed log-probability") if stepwise else (several, "mean log-probability")
    written = {"words": words, "template": indented(text.rstrip()), "several": several, "mean": mean}
    return _WORDS.format(text=rows, place=place, **written)
