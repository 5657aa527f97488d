"""Templates in OpenPrompt's syntax and PET's patterns: the same text as there, or a sentence on what cannot be translated."""

import pytest
from pydantic import ValidationError

from fedsim.data.config import TaskConfig
from fedsim.data.foreign_templates import translated

FIELDS = ("premise", "hypothesis", "a", "b")


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        ('{"placeholder":"text_a"} It was {"mask"}.', "{premise} It was <mask>."),
        ('{"placeholder": "text_a"} ? {"mask"} , {"placeholder":"text_b"}', "{premise} ? <mask> , {hypothesis}"),
        ("{'meta':'hypothesis'} {'mask': None}", "{hypothesis} <mask>"),
        (
            '{"text":"In summary"} {"mask"} : {"placeholder":"text_a", "shortenable": True}',
            "In summary <mask> : {premise}",
        ),
        ('{"mask"}{"placeholder":"text_d"} {"placeholder":"text_c","shortenable":"True"}', "<mask>{b} {a}"),
        ("[text_a, 'It was', self.mask, '.']", "{premise} It was <mask> ."),
        ("[self.mask, ':', self.shortenable(example.text_a), text_b]", "<mask> : {premise} {hypothesis}"),
        ("['\"', text_a, '\" ?', mask], []", '" {premise} " ? <mask>'),
        ("{premise} [mask] {hypothesis} <mask>", "{premise} [mask] {hypothesis} <mask>"),
        ("[1] {premise} : <mask>", "[1] {premise} : <mask>"),
        ("{premise} {nothing} <mask>", "{premise} {nothing} <mask>"),
    ],
)
def test_a_template_is_translated_and_ours_stays(foreign, ours):
    assert translated(foreign, FIELDS) == ours


@pytest.mark.parametrize(
    ("foreign", "sentence"),
    [
        (
            '{"placeholder":"text_a"} {"soft"} {"mask"}',
            "'soft' of OpenPrompt's syntax cannot be translated: trained tokens are a",
        ),
        (
            '{"placeholder":"text_a"} {"mask"} {"special":"<eos>"}',
            "'special' .* data.task.word_end can close a decoder's word",
        ),
        ('{"placeholder":"text_a", "shortenable": False} {"mask"}', "'shortenable' .* every field may be shortened"),
        ('{"placeholder":"text_a", "post_processing": lambda x: x.strip()} {"mask"}', "post_processing.* runs no code"),
        (
            '{"placeholder":"text_e"} {"mask"}',
            "'text_e' is no text of this task; its fields are premise, hypothesis, a, b",
        ),
        ('{"meta":"choice"} {"mask"}', "'choice' is no text of this task"),
        ("[text_a], [self.mask, text_b]", "the second list of a PET pattern stands behind a separator token"),
        ("[text_a, self.mask, text_a + '.']", r"text_a \+ '\.' of a PET pattern cannot be translated"),
        ("(text_a, self.mask)", "a PET pattern is a list of texts"),
    ],
)
def test_what_cannot_be_translated_is_named(foreign, sentence):
    with pytest.raises(ValueError, match=sentence):
        translated(foreign, FIELDS)


def test_a_task_has_the_translated_template():
    keys = {"name": "t", "fields": ("text",), "labels": ("0", "1"), "label_words": ("bad", ("good", "very good"))}
    task = TaskConfig(**keys, template='{"placeholder":"text_a"} It was {"mask"} .')
    assert task.template == "{text} It was <mask> ."
    assert task.words_of_classes == (("bad",), ("good", "very good"))
    with pytest.raises(ValidationError, match=r"template lacks \{text\}"):
        TaskConfig(**keys, template='It was {"mask"} .')
    with pytest.raises(ValidationError, match="'text_b' is no text of this task"):
        TaskConfig(**keys, template='{"placeholder":"text_b"} It was {"mask"} .')
    with pytest.raises(ValidationError, match="label_words has an empty list"):
        TaskConfig(**{**keys, "label_words": ("bad", ())})
    with pytest.raises(ValidationError, match="word_end can have <eos> at its end alone"):
        TaskConfig(**keys, word_end="<eos> .")
