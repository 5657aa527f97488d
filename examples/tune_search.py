"""A search with Ray Tune: eight trials, two at a time on two cores; ASHA ends the ones that fall behind.

python examples/tune_search.py                  # from the checkout's folder; needs: pip install "fedsim[tune]"

Every trial is a run of the embedded corpus with other numbers. A trial reports each round with a checkpoint, its run folder,
so the best one can be looked at, exported or gone on with like any other run.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import ray
from ray import tune

import fedsim
from fedsim import Config

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
SMALL = {
    "data": {"train_examples": 600, "validation_examples": 200},
    "partition": {"clients": 20},
    "evaluation": {"shard_size": 100},
    "tracking": {"plots": False},
}
SPACE = {
    "server.lr": tune.loguniform(0.1, 2.0),
    "client.optimizer.lr": tune.loguniform(0.003, 0.1),
    "prompt.length": tune.choice([4, 8, 16]),
}


def search(trials: int, rounds: int, storage: str) -> tune.ResultGrid:
    """Return the results of all trials."""
    # executor=local: a trial is one process with one CPU, so that two run side by side.
    config = Config.read(CONFIG, rounds=rounds, executor="local", **SMALL)
    asha = tune.schedulers.ASHAScheduler(time_attr="round", grace_period=2, reduction_factor=2, max_t=rounds)
    settings = tune.TuneConfig(
        metric="global_metric", mode="max", num_samples=trials, scheduler=asha, reuse_actors=True
    )
    kept = tune.RunConfig(
        name="fedsim-search",
        storage_path=storage,
        verbose=0,
        checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
        failure_config=tune.FailureConfig(max_failures=2),
        callbacks=fedsim.tune.callbacks(),  # a trial that starts again keeps its rows
    )
    return tune.Tuner(fedsim.tune.trainable(config), param_space=SPACE, tune_config=settings, run_config=kept).fit()


def main() -> None:
    """Search, and print a line for each trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--storage", default=str(Path(tempfile.gettempdir()) / "fedsim-tune"))
    given = parser.parse_args()
    # Tune would warn that these small trials checkpoint more often than it usually looks.
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    if not ray.is_initialized():
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    results = search(given.trials, given.rounds, given.storage)
    for number, result in enumerate(results):
        drawn = ", ".join(f"{key}={value:.4g}" for key, value in result.config.items())
        ended = f"failed: {result.error}" if result.error else f"{result.metrics['global_metric']:.4f}"
        print(f"trial {number}: {ended} after {(result.metrics or {}).get('round', 0)} rounds ({drawn})")
    best = results.get_best_result()
    print(f"best: {best.metrics['global_metric']:.4f}; its run folder: {best.checkpoint.path}")


if __name__ == "__main__":
    main()
