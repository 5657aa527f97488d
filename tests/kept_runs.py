"""What a run with a cache keeps, and what it found."""

import json

import pyarrow.parquet as pq

ALL = {"tokens": 2, "scores": 1, "start": 1, "fuse": 1}
"""What one run keeps: two splits, and one of each other kind."""


def results(path):
    """Return all that a run found, without its times."""
    events = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return (
        (path / "prompt" / "global.safetensors").read_bytes(),
        [
            {key: value for key, value in row.items() if not key.startswith("seconds")}
            for row in pq.read_table(path / "rounds.parquet").to_pylist()
        ],
        [
            {key: value for key, value in event.items() if key not in ("seconds", "at", "time")}
            for event in events
            if event["event"] in ("layers", "start")
        ],
    )
