#!/usr/bin/env bash
# A Ray Tune trial that fails and is started again (FailureConfig(max_failures=...)) loses rows of its results. The driver writes each
# row to a local result.json, which it copies to storage every ten seconds or more. When the trial starts again, JsonLoggerCallback
# fetches storage's copy over the longer local file (LoggerCallback._restore_from_remote) and appends to that. Rows since the last copy
# are gone, also from Result.metrics_dataframe, although they were reported and have checkpoints from which the trial goes on; nothing
# is said. progress.csv of the same folder has all rows: its logger does not begin anew. With both logs, the data frame is read from
# result.json. The trial here reports four rows, and fails once after the third, with a step of 12 s so that a copy is made before. It
# is a race of the copy with the log: on a busy machine the copy may be late and whole, so up to three searches are made.
# Seen with ray 2.60.0 (Linux, storage in a folder). Exit status 0: still so; 1: it has changed.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet "ray[tune]==2.60.0"
cat > "$work/search.py" <<'PYTHON'
import csv, json, sys, time
from pathlib import Path
import ray
from ray import tune

work = Path(sys.argv[1])


class Counts(tune.Trainable):
    def setup(self, config):
        self.done, self.failed = 0, Path(config["failed"])

    def step(self):
        if self.done == 3 and not self.failed.exists():
            self.failed.touch()
            raise RuntimeError("fails once")
        self.done += 1
        if self.done == 2:
            time.sleep(12)
        return {"row": self.done, "done": self.done == 4}

    def save_checkpoint(self, folder):
        Path(folder, "done").write_text(str(self.done))

    def load_checkpoint(self, folder):
        self.done = int(Path(folder, "done").read_text())


ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
settings = tune.RunConfig(
    name="search",
    storage_path=str(work / "storage"),
    verbose=0,
    checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
    failure_config=tune.FailureConfig(max_failures=1),
)
(result,) = tune.Tuner(Counts, param_space={"failed": str(work / "failed")}, run_config=settings).fit()
frame = [int(row) for row in result.metrics_dataframe["row"]]
logged = [json.loads(line)["row"] for line in Path(result.path, "result.json").read_text().splitlines()]
with Path(result.path, "progress.csv").open() as file:
    table = [int(row["row"]) for row in csv.DictReader(file)]
print("metrics_dataframe:", frame, "result.json:", logged, "progress.csv:", table, "error:", result.error)
assert result.error is None and result.metrics["row"] == 4
sys.exit(0 if frame == logged == [1, 4] and table == [1, 2, 3, 4] else 1)
PYTHON
for attempt in 1 2 3; do
    mkdir "$work/$attempt"
    if RAY_AIR_NEW_OUTPUT=0 "$work/venv/bin/python" "$work/search.py" "$work/$attempt" 2>/dev/null; then exit 0; fi
done
exit 1
