"""What is done with blocks of pages that hold no comments on it; by page and the start of the block. See doc_blocks.py."""

_MODEL = "not run: reads a model, and data, that are not in the repository"
_HOURS = "not run: takes hours; the study's file is checked by tests/study"
_BUCKET = "not run: there is no bucket; tests/records/test_remote.py does the same on other URLs"
_JOB = "not run: needs a cluster; tests/end_to_end/test_job_submit.py submits a job to a head of its own"

MARKS = {
    ("README.md", "make run"): "not run: sets up the environment that the tests run in",
    ("README.md", "Run finished"): "not run: output of make run",
    (
        "README.md",
        "fedsim init reviews.csv",
    ): "not run: tests/test_cli.py, tests/study and tests/doctor run each command",
    ("README.md", "import fedsim"): "not run: tutorials/first_run.md runs the same",
    ("CONTRIBUTING.md", "make test"): "not run: runs the tests",
    ("docs/guide.md", "rounds: 20"): "config",
    ("docs/guide.md", "fedsim run configs/quickstart.yaml tuner.kind=lora"): "run small: sampling.clients_per_round=4",
    ("docs/guide.md", "fedsim run configs/quickstart.yaml output=run"): "run small: sampling.clients_per_round=4",
    ("docs/guide.md", "import fedsim"): "not run: tutorials/first_run.md runs the same",
    ("docs/guide.md", "fedsim run configs/quickstart.yaml layers.choose=all"): "run small: layers.share=",
    ("docs/guide.md", "fedsim run configs/methods/fedit.yaml output=lora"): "run small: sampling.clients_per_round=4",
    (
        "docs/guide.md",
        "fedsim report",
    ): "not run: of folders of other commands; tests/display and tests/study do the same",
    (
        "docs/guide.md",
        "fedsim cache",
    ): "not run: would clear the user's cache; tests/kept/test_cache_cli.py does the same",
    ("docs/guide.md", "data:\n  path: my_data"): "config",
    ("docs/guide.md", "fedsim run configs/minilm_sst2.yaml"): _MODEL,
    ("docs/guide.md", "fedsim run configs/paper"): _MODEL,
    ("docs/guide.md", "ray job submit"): _JOB,
    ("docs/guide.md", "fedsim scale"): "not run: takes minutes; tests/scaling/test_study.py runs a smaller one",
    ("docs/operations.md", "fedsim run configs/quickstart.yaml output=s3"): _BUCKET,
    ("docs/world.md", "fedsim run"): "run small: sampling.clients_per_round=4",
    ("docs/world.md", "fedsim compare"): _HOURS,
    ("docs/asynchronous.md", "fedsim run"): "run small: buffer.concurrency=8",
    ("docs/scaling.md", "fedsim scale CONFIG"): "not run: a form, not a command",
    ("docs/scaling.md", "fedsim scale"): "not run: takes minutes; tests/scaling/test_study.py runs a smaller one",
    ("docs/scaling.md", " clients  cohort"): "not run: output of the command above",
    ("docs/scaling.md", "ray job submit"): _JOB,
    ("docs/performance.md", "python -m benchmarks"): "not run: measures for minutes; tests/benchmarks run the parts",
    ("docs/performance.md", "fedsim scale"): "not run: takes minutes; tests/scaling/test_study.py runs a smaller one",
    ("docs/clusters.md", "waiting for room"): "not run: a line of a run that waits",
    ("docs/clusters.md", "from ray import tune"): "not run: tests of fedsim/executors/tune run such a search",
    ("docs/tracking.md", "tracking:"): "config",
    (
        "docs/tracking.md",
        "fedsim run configs/quickstart.yaml tracking.wandb",
    ): "not run: needs wandb and mlflow; their tests run both",
    ("docs/tracking.md", "fedsim run configs/quickstart.yaml --load"): "run small: sampling.clients_per_round=4",
    ("docs/guide.md", "fedsim schema"): "run",
    ("docs/guide.md", "# yaml-language-server"): "config",
    ("docs/guide.md", "fedsim run quickstart"): "not run: the tests of fedsim init run it on a file of their own",
    ("docs/guide.md", "fedsim run methods/fedit"): "run small: sampling.clients_per_round=4",
    (
        "docs/operations.md",
        "fedsim watch",
    ): "not run: of folders of other commands; the tests of fedsim watch do the same",
    ("docs/operations.md", "fedsim run configs/quickstart.yaml --json"): "not run: the tests of --json do the same",
    ("docs/data.md", "fedsim init"): "not run: the tests of fedsim init do the same",
    ("docs/data.md", "reviews.csv: 600"): "not run: output of the command above",
}
"""README, CONTRIBUTING, and pages whose blocks hold no comments of their own."""
