"""Label words as tokens: each as written in place of the template's mask, of one token or of several."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.core.errors import DataError, listed, shown
from fedsim.core.words import LabelWords
from fedsim.data.config import TaskConfig
from fedsim.data.several import encode_plain
from fedsim.data.templates import Template, parse_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = list[int]
END = "<eos>"


def label_words(task: TaskConfig, tokenizer: PreTrainedTokenizerBase, causal: bool) -> LabelWords:
    """Return the tokens of each class's label words, as written in place of the template's mask.

    After a space a word begins with a word-initial token (``Ġgreat`` in RoBERTa and GPT-2, ``▁great`` in LLaMA); directly
    after other text, or at the very start, it is the tokenizer's encoding there. With ``task.word_end`` each word has
    the tokens of that text as well.

    Raises
    ------
    DataError
        If the task has no template or label words, the tokenizer does not know a word or puts it together with the text before
        it, two words have the same tokens, or a masked language model is given ``word_end``.
    """
    template = parse_template(task)
    if causal:
        template = template.as_causal()
    if task.label_words is None:
        raise DataError(
            f"data.task.label_words: task {shown(task.name)} has no label words, which the verbalizer head needs; give one "
            f"word for each of {listed(task.labels)}, or use the classifier head"
        )
    if task.word_end is not None and not causal:
        raise DataError(
            f"data.task.word_end: {shown(task.word_end)} stands behind a word that a decoder writes, but this model reads "
            "words at masks; leave it out, and write what follows into the template"
        )
    owner: dict[tuple[int, ...], str] = {}
    words: list[list[Ids]] = []
    for own in task.words_of_classes:
        words.append([])
        for word in own:
            tokens = word_tokens(word.strip(), template, tokenizer, task.word_end or "")
            if tuple(tokens) in owner:
                names = [str(name) for name in tokenizer.convert_ids_to_tokens(tokens)]
                same = f"token {names[0]!r}" if len(names) == 1 else f"tokens {names}"
                raise DataError(
                    f"data.task.label_words: {shown(owner[tuple(tokens)])} and {shown(word)} are the same {same} of this "
                    f"tokenizer; give different words"
                )
            owner[tuple(tokens)] = word
            words[-1].append(tokens)
    return LabelWords.of(words, masks=not causal)


def word_tokens(word: str, template: Template, tokenizer: PreTrainedTokenizerBase, end: str = "") -> Ids:
    """Encode a word after the text before the mask, and return the tokens that it adds; DataError if they are not known ones.

    Parameters
    ----------
    end
        Text behind the word that belongs to it; ``<eos>`` at its end is the tokenizer's end token.
    """
    context = ""
    if template.before:
        context = template.cue.strip(" ") or "a"
    space = " " if template.cue.endswith(" ") else ""
    text = context + space + word + end.removesuffix(END)
    alone, together = encode_plain(tokenizer, [context, text])
    own = together[: len(alone)] == alone
    # Put together with the text before it, a single token can still stand for the word.
    tokens = together[len(alone) :] if own else together
    written = f"data.task.label_words: {shown(word)}, written {shown(space + word)} in the template,"
    if not word or not tokens or tokenizer.unk_token_id in tokens or not (own or len(tokens) == 1):
        names = [str(name) for name in tokenizer.convert_ids_to_tokens(tokens)]
        how = "is not known to" if own else "is put together with the text before it by"
        raise DataError(f"{written} {how} this tokenizer, whose tokens are {shown(names)}; choose another word")
    if not end.endswith(END):
        return tokens
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"data.task.word_end: {shown(end)} has {END}, but this tokenizer has no end token; leave it out"
        )
    return [*tokens, int(tokenizer.eos_token_id)]
