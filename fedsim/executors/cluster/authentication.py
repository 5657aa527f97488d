"""Token authentication of a joined cluster: the token that Ray would send, and what is wrong if the cluster refuses it."""

from __future__ import annotations

import os
from pathlib import Path

import ray

_TOKEN_BY_DEFAULT = (2, 61)
"""Version from which Ray authenticates by token unless ``RAY_AUTH_MODE=disabled``."""
_FILE = Path(".ray") / "auth_token"


def sent_token() -> list[tuple[str, str]]:
    """Return the metadata of a gRPC call with this process's token; empty if it sends none."""
    token = _token() if _is_on() else ""
    return [("authorization", f"Bearer {token}")] if token else []


def token_refusal(named: str) -> str:
    """Return the sentence for a cluster that has refused this process for want of the right token.

    Parameters
    ----------
    named
        The cluster's address, as the user has given it.
    """
    if not _token():
        given = "RAY_AUTH_TOKEN is not set"
    elif not _is_on():
        given = "RAY_AUTH_MODE=token is not set"
    else:
        given = (
            "RAY_AUTH_TOKEN is not the cluster's" if os.environ.get("RAY_AUTH_TOKEN") else f"{_file()} has another one"
        )
    return f"{named} asks for a token, and {given}; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to its head's token"


def _is_on() -> bool:
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    version = tuple(int(part) for part in ray.__version__.split(".")[:2])
    return mode == "token" if mode else version >= _TOKEN_BY_DEFAULT


def _file() -> Path:
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(given) if given else Path.home() / _FILE


def _token() -> str:
    """Return the token that Ray finds: in the environment, else in a file; empty if there is none."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    try:
        return _file().read_text(encoding="utf-8").strip()
    except OSError:
        return ""
