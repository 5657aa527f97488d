"""Nothing from a file or the network is run as code, unless asked for in so many words; nothing foreign is overwritten."""

import ast
import contextlib
import io
import json
import pickle
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from support import ROOT
from transformers import dynamic_module_utils
from typer.testing import CliRunner

import fedsim
from clients.backbone.location import locate
from clients.config import ModelConfig
from fedsim import load_prompt
from fedsim.cli import app
from fedsim.configuration.schema import read_config
from fedsim.core.errors import ConfigError, ModelError

PRODUCT = ("fedsim", "clients", "server", "partitions")
UNPICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("package", PRODUCT)
def test_no_source_unpickles_or_evaluates(package):
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            allowed = {"cloudpickle"} if path.name == "shipping.py" else set()  # it writes pickles and reads none
            assert not (UNPICKLERS - allowed) & {name.split(".")[0] for name in names}, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert not called.endswith(("pickle.load", "pickle.loads")), path
                own = {"exec", "compile"} if path.name == "plugin_source.py" else set()  # of a file that the user loads
                refused = {"eval", "exec", "compile", "torch.load", "np.load", "yaml.unsafe_load"} - own
                assert called not in refused, path
                if called in {"yaml.load", "yaml.load_all"}:
                    assert {k.arg: ast.unparse(k.value) for k in node.keywords}["Loader"] in (
                        "_Loader",
                        "yaml.SafeLoader",
                    )


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:pathlib.Path.touch [{path}]",
        "!!python/name:os.system",
        "!!python/object/new:os.system [x]",
    ],
)
def test_a_config_is_parsed_and_nothing_in_it_is_run(tmp_path, value):
    trap, config = tmp_path / "trap", tmp_path / "run.yaml"
    config.write_text(f"name: {value.format(path=trap)}\n")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        read_config(config)
    with pytest.raises(ConfigError, match="is not valid YAML"):
        read_config(ROOT / "configs" / "quickstart.yaml", [f"rounds={value.format(path=trap)}"])
    assert not trap.exists()


@pytest.fixture
def model(tmp_path):
    """A copy of the embedded model whose tokenizer wants code that comes with it; the code makes a file."""
    folder = tmp_path / "model"
    shutil.copytree(locate(ModelConfig()), folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings["auto_map"] = {"AutoTokenizer": ["own_tokenizer.OwnTokenizer", "own_tokenizer.OwnTokenizer"]}
    settings["tokenizer_class"] = "OwnTokenizer"
    path.write_text(json.dumps(settings))
    (folder / "own_tokenizer.py").write_text(
        "from pathlib import Path\n"
        "from transformers import PreTrainedTokenizerFast\n"
        f"Path({str(tmp_path / 'trap')!r}).touch()\n"
        "class OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    return folder


def test_code_of_a_model_is_run_only_when_asked_and_with_a_warning(tiny_config, tmp_path, model, monkeypatch):
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    trap = tmp_path / "trap"

    def run(name: str, **settings) -> str:
        console = Console(file=io.StringIO(), width=300)
        config = tiny_config(
            rounds=1, executor="local", output=str(tmp_path / name), model={"path": str(model), **settings}
        )
        with contextlib.suppress(ModelError):  # transformers may refuse a tokenizer whose class it does not know
            fedsim.run(config, console=console)
        return console.file.getvalue()

    assert "trust_remote_code" not in run("careful")
    assert not trap.exists()
    printed = run("trusting", trust_remote_code=True)
    assert (
        f"warning: model.trust_remote_code=true: Python code that comes with {model} is run on this machine" in printed
    )
    assert trap.exists()

    # A prompt file from elsewhere does not decide what code is run here.
    trap.unlink()
    shutil.rmtree(tmp_path / "modules")
    with contextlib.suppress(ModelError):
        load_prompt(tmp_path / "trusting")
    assert not trap.exists()


def test_weights_that_are_a_pickle_are_refused_unread(tiny_config, tmp_path):
    model, trap = tmp_path / "model", tmp_path / "trap"
    shutil.copytree(locate(ModelConfig()), model)
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(trap)))
    with pytest.raises(ModelError, match=r"cannot be read \(only safetensors files are\)"):
        fedsim.run(
            tiny_config(executor="local", output=str(tmp_path / "run"), model={"path": str(model)}), progress=False
        )
    assert not trap.exists()
    pickle.loads((model / "pytorch_model.bin").read_bytes())
    assert trap.exists()  # the trap works


def test_a_picture_does_not_replace_a_file_of_another_kind(tmp_path):
    notes, config = tmp_path / "notes.txt", str(ROOT / "configs" / "quickstart.yaml")
    notes.write_text("mine")
    for output, sentence in (
        (notes, "is a file of another kind than PNG"),
        (tmp_path, "is a folder"),
        (tmp_path / "none" / "x.png", "there is no folder"),
        ("s3://bucket/x.png", "must be a local path"),
    ):
        for command in ("partition", "layers"):
            with pytest.raises(ConfigError, match=sentence):
                CliRunner().invoke(app, [command, config, "--output", str(output)], catch_exceptions=False)
    assert notes.read_text() == "mine"


def test_studies_and_exports_go_to_paths(tmp_path):
    config = str(ROOT / "configs" / "quickstart.yaml")
    for words in (["scale", config, "--clients", "10", "--output"], ["export", "runs/x", "--to", "peft", "--output"]):
        with pytest.raises(ConfigError, match="--output s3:/b/x: this must be a local path"):
            CliRunner().invoke(app, [*words, "s3://b/x"], catch_exceptions=False)


def test_a_run_leaves_a_file_or_a_link_in_its_place_alone(tiny_config, tmp_path):
    file, folder, link = tmp_path / "file", tmp_path / "folder", tmp_path / "link"
    file.write_text("mine")
    folder.mkdir()
    (folder / "config.yaml").write_text("mine")
    link.symlink_to(folder)
    for place in (file, folder, link):
        with pytest.raises(ConfigError, match=f"^{place} holds files but no fedsim run"):
            fedsim.run(tiny_config(executor="local", output=str(place)), progress=False)
    assert file.read_text() == "mine" and [path.name for path in folder.iterdir()] == ["config.yaml"]
