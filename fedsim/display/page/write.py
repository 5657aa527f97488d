"""Writing the page of a run at its end."""

from __future__ import annotations

from collections.abc import Callable

from fedsim.core.errors import FedsimError
from fedsim.records.run_folder import RunFolder


def write_run_page(folder: RunFolder, note: Callable[[str], None]) -> bool:
    """Write ``report.html`` and return whether it is there; a failure is only a warning, since the records hold the same.

    Parameters
    ----------
    folder
        A finished run, its records flushed.
    note
        Called with messages for the user.
    """
    from fedsim.display.figure import told
    from fedsim.display.page.run_page import run_page
    from fedsim.records.events import write_atomically
    from fedsim.records.recorded_run import RecordedRun

    try:
        with told(note, folder.report):
            write_atomically(folder.report, run_page(RecordedRun(folder.path, folder.location)))
    except Exception as error:  # matplotlib's errors share no base class
        lines = str(error).strip().splitlines() or ["no reason given"]
        reason = lines[0] if isinstance(error, FedsimError) else f"{type(error).__name__}: {lines[0]}"
        note(f"warning: the page {folder.report.name} is left out: {reason}")
        return False
    return True
