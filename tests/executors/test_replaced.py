"""A fedsim function monkeypatched in the driver does not reach the actors, which is reported; nothing else is."""

import functools
import importlib
import pkgutil
from unittest import mock

import pytest
import torch
from support import make_tiny

import clients
import server
from clients import worker
from clients.training import local_training as training
from clients.training import optimizers
from fedsim import core, methods
from fedsim.core import layout
from fedsim.executors.make import make_executor
from fedsim.executors.ray.replaced import replaced_functions
from fedsim.methods import averaging
from server import sampling


@pytest.fixture(scope="module", autouse=True)
def all_modules():
    for package in (clients, server, core, methods):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)


def wrapped(function):
    @functools.wraps(function)
    def mine(*arguments, **named):
        return function(*arguments, **named)

    return mine


class Mine(worker.ClientWorker):
    pass


def test_nothing_is_told_of_modules_as_they_are_with_all_their_decorators():
    assert replaced_functions() == []


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (optimizers, "clip", lambda *arguments: None),
        (optimizers, "clip", wrapped(optimizers.clip)),
        (optimizers, "clip", functools.partial(optimizers.clip)),
        (optimizers, "clip", mock.Mock()),
        (optimizers, "clip", optimizers.direction),
        (training, "clip", lambda *arguments: None),  # where it is called, by the name that it was imported by
        (worker.ClientWorker, "train", lambda self, *arguments: None),
        (worker.ClientWorker, "train", worker.ClientWorker.evaluate),
        (worker, "ClientWorker", Mine),
        (averaging.FedAvgM, "apply", lambda self, *arguments: None),
        (layout.VectorLayout, "size", property(lambda self: 0)),
        (layout.VectorLayout, "full", classmethod(lambda cls, *arguments: None)),
    ],
)
def test_a_replacement_is_told_by_module_and_name(monkeypatch, owner, name, value):
    monkeypatch.setattr(owner, name, value)
    found = replaced_functions()
    here = f"{owner.__name__}.{name}" if not isinstance(owner, type) else f"{owner.__module__}.{owner.__name__}.{name}"
    assert here in found
    assert all(each.endswith(f".{name}") for each in found)


def test_what_the_driver_alone_calls_and_what_is_compiled_is_no_replacement(monkeypatch):
    monkeypatch.setattr(sampling, "cohort", lambda *arguments: None)
    monkeypatch.setattr(training, "train_clients", torch.compile(training.train_clients))
    found = replaced_functions()
    # Another module has imported the function as it was: that is another one there, and the only thing to tell.
    assert found == ["clients.training.group.train_clients"]


def test_a_run_on_ray_warns_and_the_local_executor_uses_the_patch(monkeypatch):
    monkeypatch.setattr(optimizers, "clip", lambda *arguments: None)
    notes = []
    make_executor(make_tiny(executor="ray"), lambda: None, notes.append)
    assert notes == [
        "warning: replaced in this process: clients.training.local_training.clip, clients.training.optimizers.clip; "
        "actors import the code from its files without these changes; set executor=local to use them"
    ]
    make_executor(make_tiny(executor="local"), lambda: None, notes.append)
    assert len(notes) == 1
