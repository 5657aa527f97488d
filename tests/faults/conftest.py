"""Puts back what a fault replaces in the process of the tests."""

from collections.abc import Iterator

import pytest

import clients.training.group
from clients.worker import ClientWorker


@pytest.fixture(scope="module", autouse=True)
def restored() -> Iterator[None]:
    """Put back, behind a module's tests, what ``benchmarks.faulty`` replaces in this process in every run of theirs."""
    places = (clients.training.group, "train_clients"), (ClientWorker, "_score_one"), (ClientWorker, "_of_some")
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in places:
            patch.setattr(owner, name, getattr(owner, name))
        yield
