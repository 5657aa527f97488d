"""ClearML as a tracker of one's own (pip install clearml).

    fedsim run quickstart --load examples/clearml_tracker.py tracking.trackers=[clearml] params.clearml.offline=true

Offline, what would be sent lies in a ZIP file in CLEARML_CACHE_DIR/offline, for clearml.Task.import_offline_session. ClearML
knows one task a process, and offline mode is the whole process's: do one run at a time in it. It records the script that was
started, too.
"""

import importlib.util

import fedsim
from fedsim.core.errors import ConfigError
from fedsim.core.schema import Schema
from fedsim.records.trackers.base import Tracker, flat, numbers, scalars

NOTHING_ELSE = {
    "auto_connect_arg_parser": False,
    "auto_connect_frameworks": False,
    "auto_connect_streams": False,
    "auto_resource_monitoring": False,
}
"""Tells ClearML not to watch the process: the run says what there is."""


@fedsim.register("tracker", "clearml")
class ClearmlTracker(Tracker):
    """Makes a run a task of ClearML."""

    class Config(Schema):
        """Keys in section ``params.clearml``."""

        project: str = "fedsim"
        """Project that the task belongs to."""
        offline: bool = False
        """Whether to write a session to the disk instead of sending it."""

    task = None

    def check(self):
        """Refuse to start without the package."""
        if importlib.util.find_spec("clearml") is None:
            raise ConfigError("the tracker clearml needs the package clearml: pip install clearml")

    def start(self, run, config, resumed):
        """Begin a task, or continue one by its id."""
        from clearml import Task

        if self.task is None:  # else this is the second call, after one that failed
            if self.params.offline:
                Task.set_offline(True)
            # 0: a continued task would else count rounds from its last one on.
            which = (
                {"reuse_last_task_id": resumed, "continue_last_task": 0} if resumed else {"reuse_last_task_id": False}
            )
            self.task = Task.init(self.params.project, run.name, **which, **NOTHING_ELSE)
        self.task.set_parameters({key: str(value) for key, value in flat(config)})
        return self.task.id

    def round(self, record):
        """Report a round's numbers."""
        for name, value in scalars(record).items():
            self.task.get_logger().report_scalar(*name.split("/"), value=value, iteration=record["round"])

    def artifact(self, path):
        """Upload a file that the run has made."""
        self.task.upload_artifact(path.stem, str(path), wait_on_upload=True)

    def finish(self, summary, status):
        """Report the summary, and end the task."""
        for name, value in numbers(summary).items():
            self.task.get_logger().report_single_value(name, value)
        {"finished": self.task.mark_completed, "stopped": self.task.mark_stopped, "failed": self.task.mark_failed}[
            status
        ]()
        self.task.close()
