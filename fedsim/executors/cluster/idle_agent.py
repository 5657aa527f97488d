"""Takes the place of the agent that a raylet starts for dashboard, metrics and jobs: says that it serves nothing, and waits.

Run as a program by the raylet, with the agent's own arguments, and with Python's standard library alone. A raylet needs such
a process, ends it, and ends with it. What it says is what Ray's agent says where Ray is installed without its dashboard.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")
"""Ports that the raylet waits for, each in a file of the session's folder."""
_NONE = "-1"


def main() -> None:
    """Write that there are no ports, and wait until the raylet ends."""
    raylet = os.getppid()
    options = dict(word[2:].split("=", 1) for word in sys.argv[1:] if word.startswith("--") and "=" in word)
    for port in PORTS:
        path = Path(options["session-dir"]) / f"{port}_{options['node-id']}"
        new = path.with_name(f"{path.name}.new")
        new.write_text(_NONE, encoding="ascii")
        new.replace(path)
    while os.getppid() == raylet:
        time.sleep(1)


if __name__ == "__main__":
    main()
