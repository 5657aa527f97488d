"""Keys: the same for equal content, different for different content, however alike the two are."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from fedsim.kept.digest import code, digest, source_hash

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([0.0, 1.0, -1.0, 0.5]),
    st.text("a\0 1é\ud800", max_size=3),
    st.binary(max_size=2),
)
ARRAYS = st.builds(
    lambda numbers, dtype, shaped: np.array(numbers, dtype).reshape((1, -1) if shaped else -1),
    st.lists(st.integers(0, 2), max_size=3),
    st.sampled_from(["<i4", "<i8", "<f4", ">i4"]),
    st.booleans(),
)
CONTENTS = st.recursive(
    LEAVES | ARRAYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=6,
)


def told(content):
    """Return content in a form that Python compares as keys should: by type and value."""
    if isinstance(content, np.ndarray):
        return ("array", content.dtype.str, content.shape, content.tobytes())
    if isinstance(content, dict):
        return ("mapping", tuple((key, told(content[key])) for key in sorted(content)))
    if isinstance(content, list):
        return ("list", tuple(map(told, content)))
    return (type(content).__name__, content)


@given(CONTENTS, CONTENTS)
def test_keys_are_equal_exactly_if_the_contents_are(one, other):
    assert (digest(one) == digest(other)) == (told(one) == told(other))


@given(st.lists(st.text("ab", max_size=2), max_size=4), st.data())
def test_moving_a_border_between_two_texts_changes_the_key(texts, data):
    joined = "".join(texts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(joined)), min_size=len(texts), max_size=len(texts))))
    other = [joined[a:b] for a, b in zip([0, *cuts], [*cuts, len(joined)], strict=True)]
    assert (digest(texts) == digest(other)) == (texts == other)


@pytest.mark.parametrize("content", [{1: "a"}, {"a", "b"}, np.array([None]), object(), np.int64(3)])
def test_what_cannot_be_told_apart_is_no_key(content):
    with pytest.raises(TypeError, match="key"):
        digest(content)


def test_the_order_of_keys_and_the_layout_in_memory_do_not_count():
    grid = np.arange(6).reshape(2, 3)
    assert digest({"a": 1, "b": [grid]}) == digest({"b": (np.asfortranarray(grid),), "a": 1})


def test_a_change_in_any_source_file_changes_the_code(tmp_path):
    package = tmp_path / "house" / "rooms"
    package.mkdir(parents=True)
    seen = set()
    for name, text in (("a.py", "x = 1"), ("a.py", "x = 2"), ("b.py", ""), ("c.py", "")):
        (package / name).write_text(text)
        seen.add(source_hash(iter([package.parent])))
    (package / "c.py").rename(package / "d.py")
    assert len(seen | {source_hash(iter([package.parent]))}) == 5
    assert {"format", "python", "source", "torch", "transformers", "tokenizers", "numpy"} <= set(code())
