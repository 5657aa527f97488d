"""Plug-ins: what is loaded and registered, what is said where that cannot be, and how classes get to other processes."""

import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from ray import cloudpickle
from support import ROOT

import fedsim
from fedsim.configuration.schema import build_config, read_config
from fedsim.configuration.text import config_text
from fedsim.core import plugins
from fedsim.core.errors import ConfigError, PluginError
from fedsim.core.uses import EVERY_KEY
from fedsim.data.config import TaskConfig
from fedsim.data.metrics import METRICS, compute
from fedsim.data.tasks import TASKS, resolve_task
from fedsim.executors.ray.shipping import shipped
from partitions import PARTITIONERS, partition
from partitions.iid import Iid

HOUSE = ROOT / "tests" / "plugins" / "house.py"
COUNTER = """
import fedsim
from fedsim.core.schema import Schema
from partitions import Partitioner

@fedsim.register("partitioner", "{name}")
class Counter(Partitioner):
    class Config(Schema):
        start: int = 0
        '''First example.'''

    def deal(self, labels_N, column, rng):
        {body}
"""
RETURN = "return __import__('numpy').array_split(__import__('numpy').arange(len(labels_N)), self.config.population)"


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a plug-in's file; all that is loaded is unloaded in the end."""
    before = {plugin.file for plugin in plugins.loaded()}

    def write(name: str, text: str):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    yield write
    for plugin in plugins.loaded():
        if plugin.file not in before:
            plugins.unload(plugin.file)


def counter(name="counter", body=RETURN):
    return COUNTER.format(name=name, body=body)


def run_values(kind="counter", **more):
    return {"partition": {"kind": kind, "clients": 4}, "sampling": {"clients_per_round": 2}, **more}


# -- registries --------------------------------------------------------------------------------------------------------


def test_a_file_registers_once_and_again_where_it_has_changed(write):
    path = write("mine.py", counter())
    first = plugins.load_plugin(path)
    assert plugins.load_plugin(path) is first and PARTITIONERS.origin("counter") == "mine.py"
    old, name = PARTITIONERS["counter"], build_config(run_values()).plugins["mine.py"]
    assert name == first.sha256
    path.write_text(counter("counted"))
    assert plugins.load_plugin(path).sha256 != first.sha256
    assert "counter" not in PARTITIONERS and PARTITIONERS["counted"] is not old


def test_the_identity_of_a_config_is_that_of_its_plug_ins_too(write):
    without = build_config({})
    path = write("mine.py", counter())
    plugins.load_plugin(path)
    one = build_config({})
    assert one.identity != without.identity and without.plugins == {}
    path.write_text(counter() + "\n# another one\n")
    plugins.load_plugin(path)
    assert build_config({}).identity not in (one.identity, without.identity)
    assert one.plugins != build_config({}).plugins  # what a config was made with stays what it was


def test_own_keys_are_checked_recorded_and_part_of_the_identity(write, tmp_path):
    plugins.load_plugin(write("mine.py", counter()))
    default, other = build_config(run_values()), build_config(run_values(params={"counter": {"start": 3}}))
    assert (default.params["counter"].start, other.params["counter"].start) == (0, 3)
    assert default.identity != other.identity
    (tmp_path / "again.yaml").write_text(config_text(other))
    assert read_config(tmp_path / "again.yaml", ["name="]) == other.model_copy(update={"name": "again"})
    assert "  counter:\n    # First example.\n    start: 3\n" in config_text(other)


MISTAKES = {
    "wrong value": (["params.counter.start=x"], r"params\.counter\.start is \"x\", but must be a whole number"),
    "unknown key": (["params.counter.strat=1"], r"no key 'params\.counter\.strat' \(did you mean 'params\.counter\.start'\?\)"),
    "unknown name": (["params.countre.start=1"], r"params\.countre: no plug-in of this name is loaded \(did you mean 'co"),
    "not in use": (["partition.kind=iid", "params.counter.start=1"], r"params\.counter has no use with partition\.kind=iid"),
    "no own keys": (["params.iid.start=1"], r"params\.iid has no use: the partitioner iid has no keys of its own"),
    "unknown kind": (["partition.kind=countre"], r"partition\.kind is \"countre\".*\(did you mean 'counter'\?\)"),
    "key of other kinds": (["partition.alpha=2"], r"partition\.alpha has no use with partition\.kind=counter"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_in_own_keys_is_one_sentence(write, tmp_path, case):
    overrides, sentence = MISTAKES[case]
    plugins.load_plugin(write("mine.py", counter()))
    path = tmp_path / "run.yaml"
    path.write_text("partition: {kind: counter}\n")
    with pytest.raises(ConfigError, match=sentence) as caught:
        read_config(path, overrides)
    assert str(caught.value).startswith("override ") and "\n" not in str(caught.value)


# -- what cannot be loaded ---------------------------------------------------------------------------------------------

REFUSED = {
    "raises": ("x.py", "import fedsim\n\n1 / 0\n", r"x\.py cannot be loaded, line 3: ZeroDivisionError: division by zero$"),
    "ends": ("x.py", "raise SystemExit(3)\n", r"x\.py cannot be loaded, line 1: SystemExit: 3$"),
    "no such import": ("x.py", "import no_such_module\n", r"line 1: ModuleNotFoundError: No module named 'no_such_module'$"),
    "is not Python": ("x.py", "a: = 3\n", r"x\.py cannot be loaded, line 1: SyntaxError: invalid syntax$"),
    "is no file of Python": ("x.txt", "", r"x\.txt is not a Python file; give one that ends in \.py$"),
    "registers nothing": ("x.py", "a = 3\n", r"x\.py registers nothing; put @fedsim\.register\(KIND, NAME\) above"),
    "a built-in's name": ("x.py", counter("iid"), r"'iid' of x\.py cannot be registered: partitions\.iid already has one"),
    "no such kind": ("x.py", "import fedsim\nfedsim.register('partitoner', 'a')\n", r"no kind of plug-in 'partitoner'; .*did"),
    "a strange name": ("x.py", "import fedsim\nfedsim.register('metric', 'a b')\n", r"a metric cannot be named 'a b'; give"),
    "no partitioner": ("x.py", "import fedsim\n@fedsim.register('partitioner', 'a')\nclass A: pass\n",
                       r"'a' must be a subclass of Partitioner, not the class A"),
    "no metric": ("x.py", "import fedsim\nfedsim.register('metric', 'a')(3)\n", r"'a' must be a function, not a int"),
    "no task": ("x.py", "import fedsim\nfedsim.register('task', 'a')({'fields': ['t'], 'labels': ['x']})\n",
                r"the task 'a' cannot be registered: labels: "),
    "a task of the corpus": ("x.py", "import fedsim\nfedsim.register('task', 'reviews')({})\n", r"a built-in one has"),
    "no Schema": ("x.py", counter().replace("Config(Schema)", "Config"), r"has a Config that is not a fedsim\.core\.schema"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_loaded_is_answered_with_one_sentence_and_leaves_nothing(write, case):
    name, text, sentence = REFUSED[case]
    kinds = [*PARTITIONERS], [*METRICS], [*TASKS], plugins.hashes()
    with pytest.raises(PluginError, match=sentence) as caught:
        plugins.load_plugin(write(name, text))
    assert "\n" not in str(caught.value)
    assert ([*PARTITIONERS], [*METRICS], [*TASKS], plugins.hashes()) == kinds
    assert not any(module.startswith("fedsim_plugin_x") for module in sys.modules)


def test_no_such_file_names_the_nearest(write, tmp_path):
    path = write("mine.py", counter())
    with pytest.raises(PluginError, match=r"there is no plug-in .*mein\.py \(did you mean '.*mine\.py'\?\)"):
        plugins.load_plugin(path.with_name("mein.py"))


def test_a_change_that_does_not_load_can_be_taken_back(write):
    path = write("mine.py", counter())
    plugins.load_plugin(path)
    path.write_text("1 / 0\n")
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        plugins.load_plugin(path)
    assert "counter" not in PARTITIONERS
    path.write_text(counter())
    plugins.load_plugin(path)
    assert "counter" in PARTITIONERS


def test_two_files_of_one_name_and_two_things_of_one_name_are_refused(write):
    plugins.load_plugin(write("mine.py", counter()))
    with pytest.raises(
        PluginError, match=r"'counter' of other\.py cannot be registered: mine\.py already has one of that name"
    ):
        plugins.load_plugin(write("other.py", counter()))
    with pytest.raises(PluginError, match=r"mine\.py and .*mine\.py have the same name; rename one of the files"):
        plugins.load_plugin(write("b/mine.py", counter("another")))
    assert PARTITIONERS.origin("counter") == "mine.py" and "another" not in PARTITIONERS


# -- what fails in use -------------------------------------------------------------------------------------------------

DEALS = {
    "raises": ("raise KeyError('x')", r"the partitioner 'counter' of mine\.py failed, line 13: KeyError: 'x'$"),
    "too few clients": ("return [[0, 1]]", r"of mine\.py failed: ValueError: it dealt to 1 clients, not to 4"),
    "an example twice": ("return [[0], [1], [2], [2]]", r"it dealt example 2 out more than once"),
    "no such example": ("return [[0], [1], [2], [12]]", r"it dealt out example 12 of 12"),
    "no numbers": ("return [['a'], [1], [2], [3]]", r"did not return a list of example numbers for each client"),
    "no list": ("return None", r"of mine\.py failed: TypeError: "),
}


@pytest.mark.parametrize("case", DEALS)
def test_a_partitioner_that_fails_is_one_sentence(write, case):
    body, sentence = DEALS[case]
    plugins.load_plugin(write("mine.py", counter(body=body)))
    config = build_config(run_values())
    with pytest.raises(PluginError, match=sentence):
        partition(config.partition, np.zeros(12, np.int64), None, 0, config.params["counter"])


def test_a_metric_that_fails_or_gives_no_number_is_one_sentence(write):
    text = "import fedsim\n@fedsim.register('metric', 'mine')\ndef mine(confusion_CC):\n    {}\n"
    path = write("mine.py", text.format("return confusion_CC[9, 9]"))
    plugins.load_plugin(path)
    with pytest.raises(PluginError, match=r"the metric 'mine' of mine\.py failed, line 4: IndexError: "):
        compute("mine", np.eye(2, dtype=np.int64))
    path.write_text(text.format("return 'high'"))
    plugins.load_plugin(path)
    with pytest.raises(PluginError, match=r"the metric 'mine' of mine\.py gave 'high', which is no number"):
        compute("mine", np.eye(2, dtype=np.int64))


def test_what_is_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(Iid, "deal", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        partition(build_config({"partition": {"kind": "iid"}}).partition, np.zeros(200, np.int64), None, 0)


# -- every kind --------------------------------------------------------------------------------------------------------


def test_a_task_and_its_metric_are_taken_by_name(write):
    plugins.load_plugin(write("house.py", HOUSE.read_text()))
    task = resolve_task("moods")
    assert (task.name, task.labels, task.metric) == ("moods", ("negative", "positive"), "balanced_accuracy")
    confusion = np.array([[3, 1], [0, 2]])
    assert compute(task.metric, confusion) == (0.75 + 1.0) / 2
    assert resolve_task(build_config({"data": {"task": "moods"}}).data.task) == task


def test_a_prompt_that_was_judged_by_a_plug_ins_metric_is_read_without_it(write):
    path = write("house.py", HOUSE.read_text())
    plugins.load_plugin(path)
    recorded = resolve_task("moods").model_dump(mode="json", context=EVERY_KEY)
    plugins.unload(path.name)
    assert TaskConfig.model_validate(recorded, context=EVERY_KEY).metric == "balanced_accuracy"
    with pytest.raises(
        ConfigError, match=r'data\.task\.metric is "balanced_accuracy", but must be one of accuracy, .*plug-in'
    ):
        build_config({"data": {"task": recorded}})


def test_what_an_installed_package_names_is_loaded(tmp_path):
    (tmp_path / "their_metric.py").write_text(
        "import fedsim\nfedsim.register('metric', 'theirs')(lambda confusion_CC: 0.5)\n"
    )
    info = tmp_path / "their_metric-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-metric\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[fedsim.plugins]\ntheirs = their_metric\n")
    code = (
        "from fedsim.core import plugins; plugins.load_installed(); from fedsim.data.metrics import METRICS; "
        "print(METRICS['theirs'](None), METRICS.origin('theirs'), plugins.installed_versions())"
    )
    environment = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "0.5 their-metric {'their-metric': '1.2'}\n", done.stderr
    (tmp_path / "their_metric.py").write_text("1 / 0")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert "the plug-in theirs of the installed package their-metric cannot be loaded: ZeroDivisionError" in done.stderr


# -- other processes ---------------------------------------------------------------------------------------------------

READ = """
import pickle, sys
value = pickle.load(open(sys.argv[1], "rb"))
print(type(value).__module__, value.deal(range(4), None, None), type(value).Config(start=2).start, value.params.start)
from fedsim.core.plugins import hashes
print(hashes())
"""


def read_elsewhere(tmp_path, value):
    """Return what another process, which has loaded nothing, makes of a pickled partitioner."""
    (tmp_path / "value").write_bytes(cloudpickle.dumps(value))
    command = [sys.executable, "-c", READ, str(tmp_path / "value")]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, cwd="/", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


BODY = "return [*labels_N][type(self).Config(start=1).start :]"


def test_a_class_of_a_file_comes_with_its_source(write, tmp_path):
    path = write("mine.py", counter(body=BODY))
    plugins.load_plugin(path)
    config = build_config(run_values(params={"counter": {"start": 7}}))
    value = PARTITIONERS["counter"](config.partition, config.params["counter"])
    path.unlink()
    lines = read_elsewhere(tmp_path, shipped(value))
    assert lines == ["fedsim_plugin_mine [1, 2, 3] 2 7", "{}"]
    assert pickle.loads(pickle.dumps(shipped(value))).params == value.params  # here it is loaded already
    array = np.arange(3)
    assert shipped(array) is array  # names no plug-in


def test_a_class_of_a_script_or_notebook_comes_whole_with_its_config(tmp_path):
    namespace = {"__name__": "__main__"}
    kinds = [*PARTITIONERS]
    exec(counter("typed", body=BODY), namespace)
    try:
        assert PARTITIONERS.origin("typed") == "__main__" and "__main__" in plugins.hashes()
        config = build_config(run_values("typed", params={"typed": {"start": 7}}))
        value = PARTITIONERS["typed"](config.partition, config.params["typed"])
        assert read_elsewhere(tmp_path, shipped(value)) == ["__main__ [1, 2, 3] 2 7", "{}"]
        exec(counter("typed"), namespace)  # the cell is run again
    finally:
        PARTITIONERS.discard("typed")
        plugins._unfiled.clear()
    assert [*PARTITIONERS] == kinds


def test_register_is_found_without_anything_large():
    code = "import sys, fedsim; fedsim.register, fedsim.load_plugin; print(*{'torch', 'ray', 'transformers'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.stdout == "\n", done.stderr
    assert fedsim.register is plugins.register
