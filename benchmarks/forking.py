"""Work in a process of its own, with all that this one has loaded."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable


def forked(work: Callable[[], object]) -> int:
    """Return the id of a process that does the work and ends with status 0, or 1 if an exception leaves it."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return pid
