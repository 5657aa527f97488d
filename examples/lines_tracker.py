"""A tracker of one's own: a file of JSON lines in the run folder.

    fedsim run configs/quickstart.yaml --load examples/lines_tracker.py tracking.trackers=[lines] params.lines.file=told.jsonl

Methods run on a thread of the tracker's own. One that raises is called again later, and stops no run.
"""

import json

import fedsim
from fedsim.core.schema import Schema
from fedsim.records.trackers.base import Tracker, scalars


@fedsim.register("tracker", "lines")
class Lines(Tracker):
    """Appends a line for each call."""

    class Config(Schema):
        """Keys in section ``params.lines``."""

        file: str = "lines.jsonl"
        """File in the run folder."""

    def start(self, run, config, resumed):
        """Say which run this is; a resume gets the returned id back."""
        self.path = run.folder / self.params.file
        self.write("start", config["rounds"], run.group, resumed)
        return run.name

    def round(self, record):
        """Write the metric of a round."""
        self.write("round", record["round"], scalars(record).get("metric/global_metric"))

    def artifact(self, path):
        """Write the name of a file that the run has made."""
        self.write("artifact", path.name)

    def finish(self, summary, status):
        """Write how the run ended."""
        self.write("finish", summary.get("global_metric"), status)

    def write(self, *line):
        """Append a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
