#!/usr/bin/env bash
# A driver that ran ray.init() and is killed takes its GCS, raylet and workers with it within seconds, but the raylet's two agents
# stay for a minute: they publish the lost raylet to the GCS, which is lost as well, with a deadline of 60 s. RAY_ variables for the
# GCS client's timeouts do not shorten it. And a search by an environment variable misses both agents, though it finds every other
# process of the same Ray: they write their long title over their environment (seen as empty or cut in /proc/PID/environ).
# Seen with ray 2.60.0, psutil 7.2.2 (Linux): the rest gone after 4 s, agents after 62 s. Exit status 0: still so; 1: it has changed.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet "ray[default]==2.60.0" psutil==7.2.2
RAY_gcs_rpc_server_reconnect_timeout_s=5 MARK_OF_THIS_RUN=1 "$work/venv/bin/python" - <<'PYTHON'
import os, subprocess, sys, time
import psutil

DRIVER = """
import ray, time
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
@ray.remote
def one(): return 1
ray.get(one.remote())
time.sleep(10)
print("ready", flush=True)
time.sleep(600)
"""


def has_mark(process):
    try:
        return "MARK_OF_THIS_RUN" in process.environ()
    except psutil.Error:
        return False


driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
while "ready" not in driver.stdout.readline():
    assert driver.poll() is None, "Ray did not start"
family = psutil.Process(driver.pid).children(recursive=True)
agents = [each for each in family if each.name().startswith("ray::") and each.name().endswith("Agent")]
others = [each for each in family if each not in agents]
missed = {each.name() for each in agents if not has_mark(each)}
found = all(has_mark(each) for each in others if each.name() in ("gcs_server", "raylet"))
print("agents:", [each.name() for each in agents], "not found by the mark:", sorted(missed), "GCS and raylet found:", found)
driver.kill()
driver.wait()
begun = time.monotonic()
_, alive = psutil.wait_procs(others, timeout=30)
print(f"all others gone after {time.monotonic() - begun:.0f} s:", not alive)
_, staying = psutil.wait_procs(agents, timeout=100)
seconds = time.monotonic() - begun
print(f"agents gone after {seconds:.0f} s:", not staying)
same = len(agents) == 2 and len(missed) == 2 and found and not alive and not staying and 40 < seconds < 90
sys.exit(0 if same else 1)
PYTHON
