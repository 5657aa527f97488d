"""A cluster's driver uses the same cache: what a local run kept serves a run on actors, to the same bits."""

from kept_runs import ALL, results
from support import make_tiny

import fedsim


def test_a_run_on_actors_takes_what_a_local_run_kept(session_ray, tmp_path):
    def run(name, **changes):
        cache = {"folder": str(tmp_path / "cache")}
        return fedsim.run(make_tiny(output=str(tmp_path / name), rounds=1, cache=cache, **changes), progress=False)

    local = run("local", executor="local", client={"fuse": "auto"})
    actors = run("actors", ray={"address": "auto", "actors": 1})
    assert local["cache"] == {"taken": {}, "written": ALL}
    assert actors["cache"] == {"taken": ALL, "written": {}}
    assert results(tmp_path / "actors") == results(tmp_path / "local")
