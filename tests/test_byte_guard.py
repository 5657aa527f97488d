"""Small runs of every kind end with the bytes on record; ``python -m tests.byte_guard --remake`` changes the record."""

import pytest
from byte_guard import table
from byte_guard.cases import CASES
from byte_guard.coverage import NOT_HERE, choices, named_by_cases
from byte_guard.machine import run_all

NOT_COMPARABLE = table.why_not_comparable()


@pytest.fixture(scope="module")
def digests():
    """Return the digest of each case, all runs done in one process."""
    return run_all()


@pytest.mark.skipif(NOT_COMPARABLE is not None, reason=NOT_COMPARABLE or "")
@pytest.mark.parametrize("name", CASES)
def test_a_run_ends_with_the_bytes_on_record(digests, name):
    if name not in table.here():
        pytest.skip(f"newer than the table of such CPUs; {table.REMAKE} adds it")
    assert digests[name] == table.here()[name], (
        f"the run {name!r} ends with other bytes than on record; if that is meant: {table.REMAKE}"
    )


def test_a_resumed_run_ends_with_the_bytes_of_a_straight_one(digests):
    assert digests["resumed"] == digests["straight"]


def test_no_two_cases_are_the_same_run(digests):
    others = [digest for name, digest in digests.items() if name != "resumed"]
    assert len(set(others)) == len(others)


def test_the_tables_have_exactly_the_cases():
    """One of them all, in their order; another may have been made before the newest ones."""
    held = [list(each["digests"]) for each in table.tables()]
    assert list(CASES) in held
    assert all(names == [name for name in CASES if name in names] for names in held)


def test_every_choice_of_the_config_is_made_by_some_case():
    named = named_by_cases()
    missing = {key: words - named.get(key, set()) - NOT_HERE.get(key, set()) for key, words in choices().items()}
    assert not {key: words for key, words in missing.items() if words}


@pytest.mark.parametrize("key", NOT_HERE)
def test_what_is_left_out_exists(key):
    assert NOT_HERE[key] <= choices()[key]
