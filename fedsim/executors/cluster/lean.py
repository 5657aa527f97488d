"""A local Ray cluster without the processes that no run uses: dashboard and its agent, autoscaler monitor and log monitor.

Each is a Python process that starts before the first actor, at the same time as everything else, and holds 50 to 80 MB.
``ray.init`` waits for the dashboard's even with ``include_dashboard=False``, and has no arguments for the others, unlike
``ray start``. Nobody asks them: a local cluster does not grow, and logs stay in its folder. What this version of Ray does not
have where it is looked for is left as it is: the cluster then has some of these processes, and works as well.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from fedsim.executors.cluster import idle_agent
from fedsim.executors.cluster.ray_internals import private

_PARAMETERS = {
    "no_monitor": True,
    "include_log_monitor": False,
    # Its agent would try the default port for over three seconds if another Ray uses it, and then give up.
    "dashboard_agent_listen_port": 0,
}
_IDLE_AGENT = ("2.60.",)
"""Versions of Ray in which an idle agent takes the place of the dashboard's."""
_AGENT_NEEDS = ("aiohttp", "aiohttp_cors", "grpc", "opentelemetry", "prometheus_client")
"""What ``ray[default]`` installs beside Ray."""


@contextlib.contextmanager
def lean(metrics: bool = False) -> Iterator[None]:
    """Leave out these processes of a cluster that is started in the block, and its fixed ports.

    Parameters
    ----------
    metrics
        Keep the agent, which serves the metrics.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_replaced(private("parameter"), "RayParams", _with_parameters))
        if _can_tell_of_no_dashboard():
            node = getattr(private("node"), "Node", None)
            stack.enter_context(_replaced(node, "start_api_server", lambda usual: _start_no_dashboard))
        stack.enter_context(
            _replaced(private("utils"), "get_dashboard_dependency_error", lambda usual: _dependency_error)
        )
        agent = getattr(private("ray_constants"), "PROCESS_TYPE_DASHBOARD_AGENT", None)
        if _agent_is_known() and agent is not None and not metrics:
            program = "_build_python_executable_command_memory_profileable"
            replaced = _replaced(private("services"), program, lambda usual: functools.partial(_program, usual, agent))
            stack.enter_context(replaced)
        yield


def _with_parameters(params: Any) -> Any:
    known = inspect.signature(params).parameters
    return functools.partial(params, **{name: value for name, value in _PARAMETERS.items() if name in known})


def _agent_is_known() -> bool:
    """Whether this version of Ray has been seen to run with :mod:`fedsim.executors.cluster.idle_agent`."""
    import ray

    return ray.__version__.startswith(_IDLE_AGENT) and os.name == "posix"


def _program(usual: Callable[..., list[str]], agent: str, component: str, *arguments: Any, **options: Any) -> list[str]:
    """Return how Ray starts a component: the words before the component's own program and arguments."""
    return (
        [sys.executable, "-IS", idle_agent.__file__] if component == agent else usual(component, *arguments, **options)
    )


def _dependency_error() -> ImportError | None:
    """Say whether Ray's agent has what it needs, without importing it into this process."""
    missing = [name for name in _AGENT_NEEDS if importlib.util.find_spec(name) is None]
    return ImportError(f"No module named {missing[0]!r}") if missing else None


def _can_tell_of_no_dashboard() -> bool:
    """Whether this Ray has the names under which :func:`_start_no_dashboard` notes that there is no dashboard."""
    constants = private("ray_constants")
    return hasattr(constants, "DASHBOARD_ADDRESS") and hasattr(constants, "KV_NAMESPACE_DASHBOARD")


def _start_no_dashboard(node: Any, **options: Any) -> None:
    """Take the place of ``Node.start_api_server``.

    With ``include_dashboard=False`` Ray notes an address at which nothing answers; without one, its agent on the node would
    ask for it every second.
    """
    node._webui_url = ""
    constants = private("ray_constants")
    node.get_gcs_client().internal_kv_put(
        constants.DASHBOARD_ADDRESS.encode(), b"127.0.0.1:0", True, constants.KV_NAMESPACE_DASHBOARD
    )


@contextlib.contextmanager
def _replaced(owner: Any, name: str, instead: Callable[[Any], Any]) -> Iterator[None]:
    """Replace an attribute in the block by what ``instead`` makes of it; one that this version of Ray lacks is left alone."""
    if not hasattr(owner, name):
        yield
        return
    before = getattr(owner, name)
    setattr(owner, name, instead(before))
    try:
        yield
    finally:
        setattr(owner, name, before)
