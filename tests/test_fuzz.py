"""Damaged input, the small version of ``python -m benchmarks.fuzz``: it is taken, or refused with one sentence of ours."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fuzzing.configs import config_case
from benchmarks.fuzzing.data_files import data_case
from benchmarks.fuzzing.judgement import flaw
from benchmarks.fuzzing.layouts import layout_case
from benchmarks.fuzzing.processes import CHUNK, drawn
from benchmarks.fuzzing.prompts import prompt_case
from fedsim.core.errors import ClientError, ConfigError, FedsimError

numbers = st.integers(0, 2**63)


def taken_or_refused(case, number, tmp_path_factory):
    try:
        case(number, tmp_path_factory.mktemp("case"))
    except FedsimError as error:
        assert flaw(error) is None, str(error)


@settings(derandomize=True, max_examples=200)
@given(number=numbers)
def test_damaged_configs(number, tmp_path_factory):
    taken_or_refused(config_case, number, tmp_path_factory)


@settings(derandomize=True, max_examples=200)
@given(number=numbers)
def test_damaged_data_files(number, tmp_path_factory):
    taken_or_refused(data_case, number, tmp_path_factory)


@settings(derandomize=True, max_examples=200)
@given(number=numbers)
def test_damaged_layouts(number, tmp_path_factory):
    taken_or_refused(layout_case, number, tmp_path_factory)


@settings(derandomize=True, max_examples=15)
@given(number=numbers)
def test_damaged_prompt_files(number, tmp_path_factory):
    taken_or_refused(prompt_case, number, tmp_path_factory)


def test_no_case_is_tried_twice():
    numbers = drawn(CHUNK + 100, "0/config")
    assert len(set(numbers)) == len(numbers) == CHUNK + 100
    assert drawn(CHUNK + 100, "0/config") == numbers


@pytest.mark.parametrize(
    ("error", "wrong"),
    [
        (ConfigError("rounds is 0, but must be more than 0"), None),
        (ConfigError(" "), "is empty"),
        (ConfigError("word " * 200), "has 1000 characters"),
        (ConfigError("the map object at 0x7f is no number"), "says object at 0x"),
        (ConfigError("one\ntwo\x1b[31m"), None),
        (ClientError("client 3 failed:\nTraceback (most recent call last):"), None),
    ],
)
def test_what_is_a_sentence(error, wrong):
    assert flaw(error) == wrong


def test_a_sentence_stands_on_one_line_and_holds_no_endless_word():
    assert str(ConfigError("one\ntwo\x1b[31m\u2028")) == "one\\ntwo\\x1b[31m\\u2028"
    assert len(str(ConfigError("x" * 5000))) < 300
