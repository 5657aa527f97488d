"""Provenance of exported adapters: true, valid, escaped, and without the machine that it was made on."""

import getpass
import hashlib
import json
import platform

import pytest
import yaml
from huggingface_hub import ModelCard
from support import make_tiny

import fedsim
from fedsim.configuration.schema import Config
from fedsim.core.errors import ConfigError
from fedsim.prompts.provenance.card import front_matter, sections
from fedsim.prompts.provenance.crate import write_crate
from fedsim.prompts.provenance.escaping import code, indented, inline
from fedsim.prompts.provenance.origin import Origin
from fedsim.prompts.provenance.public import public_values
from fedsim.records.recorded_run import load_run

HOSTILE = "x`|\n---\n# <b>*title*</b> [a](b) $1$"
METADATA = {
    "fedsim": "0.1.0",
    "model": {"path": "/home/me/base", "package": None, "products": "bfloat16"},
    "tuner": {"kind": "lora"},
    "task": {"name": HOSTILE, "metric": "accuracy"},
}
PRIVACY = {
    "epsilon": 3.25, "delta": 1e-5, "noise_multiplier": 1.5, "accountant": "pld", "assumptions": ["one | run"],
}  # fmt: skip


def summary_of(**changes):
    return {
        "rounds": 4, "clients": 12, "metric_name": "accuracy", "global_metric": 0.75, "first_global_metric": 0.5,
        "select_on": "holdout", "selected_round": 3, "selected_global_metric": 0.8, "privacy": PRIVACY, "plugins": {},
        "versions": {"torch": "2.13.0"}, "contents": {"weights": "a" * 64}, "config_hash": "b" * 64, **changes,
    }  # fmt: skip


def origin_of(metadata=METADATA, base=None, client=None, config=None, **changes):
    config = config or make_tiny(name="my_run", data={"path": "/home/me/reviews", "train_examples": None})
    return Origin(metadata, base, client, config, summary_of(**changes), "2026-01-02T03:04:05.678Z")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A tiny run with a prompt in every layer, as an adapter."""
    folder = tmp_path_factory.mktemp("exported") / "run"
    config = make_tiny(
        name="my_run", executor="local", rounds=1, layers={"choose": "all"}, prompt={"position_offset": "paper"},
        client={"fuse": 2}, output=str(folder),
    )  # fmt: skip
    fedsim.run(config, progress=False)
    run = load_run(folder)
    return run, run.export(output=folder.parent / "adapter")


def entities(folder):
    crate = json.loads((folder / "ro-crate-metadata.json").read_text())
    assert crate["@context"][0] == "https://w3id.org/ro/crate/1.1/context"
    found = {entity["@id"]: entity for entity in crate["@graph"]}
    assert len(found) == len(crate["@graph"])
    return found


def references(value):
    """Yield all ids that an entity's values refer to."""
    if isinstance(value, dict):
        if set(value) == {"@id"}:
            yield value["@id"]
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


def test_the_crate_of_an_export_names_its_run_and_every_file_by_its_hash(exported):
    run, folder = exported
    found = entities(folder)
    root, action = found["./"], found["#run"]
    assert found["ro-crate-metadata.json"]["about"] == {"@id": "./"} and root["@type"] == "Dataset"
    assert root["name"] and root["description"] and root["license"]
    assert root["datePublished"] == run.events("end")[-1]["time"][:10] == action["endTime"][:10]
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "ro-crate-metadata.json"}
    assert {part["@id"] for part in root["hasPart"]} == set(files)
    for name, content in files.items():
        assert found[name]["sha256"] == hashlib.sha256(content).hexdigest()
        assert found[name]["contentSize"] == str(len(content))
    assert (
        action["@type"] == "CreateAction"
        and found[action["instrument"]["@id"]]["softwareVersion"] == fedsim.__version__
    )
    assert {"@id": "adapter_model.safetensors"} in action["result"] and {"@id": "fedsim-config.yaml"} in action[
        "object"
    ]
    assert found["#base-model"]["sha256"] == run.summary["contents"]["weights"]
    assert found["#data"]["sha256"] == run.summary["contents"]["training_data"]
    dangling = {
        each
        for entity in found.values()
        for value in entity.values()
        for each in references(value)
        if "://" not in each
    }
    assert dangling <= set(found)
    values = {entity["name"]: entity["value"] for entity in found.values() if entity["@type"] == "PropertyValue"}
    assert values["accuracy"] in (run.summary["global_metric"], run.summary["first_global_metric"])
    assert values["config_hash"] == run.summary["config_hash"]


def test_the_crate_is_read_by_the_library_of_ro_crate(exported):
    library = pytest.importorskip("rocrate.rocrate", reason="pip install fedsim[dev]")
    crate = library.ROCrate(str(exported[1]))
    assert crate.get("#run")["instrument"].id == "#fedsim"
    assert {"README.md", "adapter_model.safetensors"} <= {entity.id for entity in crate.data_entities}


def test_the_card_is_read_by_the_hubs_library_and_holds_the_figures(exported):
    run, folder = exported
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "peft" and card.data.metrics == ["accuracy"]
    (result,) = card.data.eval_results
    assert result.metric_value == run.summary["global_metric"] and result.dataset_name == "reviews"
    assert "after the last round" in result.metric_name
    assert (
        f"{run.summary['global_metric']:.4f}" in card.text
        and "seed 0" in card.text
        and "none: no guarantee" in card.text
    )


def test_the_commands_of_a_card_make_the_same_arrays_again(exported, tmp_path, monkeypatch):
    """In this process; the words are those of the card."""
    from typer.testing import CliRunner

    from fedsim.cli.commands import app

    _, folder = exported
    text = (folder / "README.md").read_text()
    commands = text.partition("## To make it again")[2].split("```")[1].strip().splitlines()
    assert len(commands) == 2
    (tmp_path / "fedsim-config.yaml").write_bytes((folder / "fedsim-config.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    for command in commands:
        more = ["executor=local", "tracking.plots=false", "client.fuse=2"] if "run " in command[:11] else []
        done = CliRunner().invoke(app, [*command.split()[1:], *more])
        assert done.exit_code == 0, done.output
    name = "adapter_model.safetensors"
    assert (tmp_path / "adapter" / name).read_bytes() == (folder / name).read_bytes()


def test_nothing_that_is_published_names_the_machine(exported):
    run, folder = exported
    here = {str(folder.parent), platform.node(), *(worker["node"] for worker in run.summary["workers"])}
    user = getpass.getuser()
    for name in ("README.md", "ro-crate-metadata.json", "fedsim-config.yaml"):
        text = (folder / name).read_text()
        words = set(text.replace("/", " ").split())
        assert not [place for place in here if place and (place in text if "/" in place else place in words)], name
        assert user not in words and "/home" not in text and "/tmp" not in text


def test_paths_are_taken_out_of_a_config_and_named(tmp_path):
    config = make_tiny(
        model={"path": "/home/me/base"}, data={"path": "reviews", "train_file": "a/b.csv", "train_examples": None}
    )
    values, hidden = public_values(config, None)
    assert hidden == ["model.path", "data.path", "data.train_file"]
    again = Config.from_yaml(yaml.safe_dump(values))
    assert (
        again.replace(model={"path": None}, data={"path": "x", "train_file": None}).identity
        == config.replace(model={"path": None}, data={"path": "x", "train_file": None}).identity
    )
    assert public_values(make_tiny(model={"path": "org/base"}), "org/base")[1] == []


def test_the_card_of_a_private_run_of_a_local_model_says_what_it_has_to(tmp_path):
    origin = origin_of(plugins={"my method.py": "c" * 64})
    text = front_matter(origin, "LoRA adapter") + sections(origin, ["README.md"])
    assert "ε = 3.25, δ = 1e-05 after 4 rounds" in text and "in bfloat16" in text and "seed 0" in text
    assert "--load 'my method.py' output=run data.path=path/to/path" in text
    assert "/home" not in text and "base_model" not in text
    data = ModelCard(text).data
    assert data.eval_results[0].dataset_name == HOSTILE and data.tags == ["fedsim", "federated-learning", "lora"]
    for line in text.splitlines():
        assert line.strip() != "# <b>*title*</b> [a](b) $1$" or line.startswith(" ")  # within YAML alone
    assert "\\<b\\>" in text
    (tmp_path / "README.md").write_text(text)
    write_crate(tmp_path, origin, "LoRA adapter")
    values = {entity["name"]: entity["value"] for entity in entities(tmp_path).values() if "value" in entity}
    assert values["epsilon"] == 3.25 and values["delta"] == 1e-5 and values["products"] == "bfloat16"


def test_the_best_prompt_has_the_figures_of_its_round_and_a_client_has_none_of_the_global_state():
    best = origin_of({**METADATA, "round": 3})
    assert next((figure.value, figure.on) for figure in best.figures) == (
        0.8, "the task's validation examples, after round 3, the best of 4, chosen on the holdout examples",
    )  # fmt: skip
    assert best.commands[1] == "fedsim export run/prompt/best.safetensors --to peft --output adapter"
    assert origin_of({**METADATA, "round": 2}).figures[0].value == 0.5  # the round that the summary has no figure of
    client = origin_of(client=3)
    assert client.figures == [] and client.commands[1].endswith("--client 3")
    called = origin_of(stopped={"rule": "call", "reason": "x"})
    assert " rounds=4 " in called.commands[0]


def test_models_and_data_of_the_hub_are_named_for_it():
    config = make_tiny(
        model={"path": "org/base"}, data={"source": "hub", "hub_name": "org/data", "train_examples": None}
    )
    data = ModelCard(front_matter(origin_of(base="org/base", config=config), "LoRA adapter")).data
    assert data.base_model == "org/base" and data.datasets == ["org/data"]


def test_a_prompt_file_alone_makes_a_card_that_says_what_is_not_known(tmp_path):
    origin = Origin.of(tmp_path / "global.safetensors", METADATA, None, None)
    text = front_matter(origin, "LoRA adapter") + sections(origin, ["README.md"])
    assert "not on record" in text and "make it again" not in text and ModelCard(text).data.eval_results is None


@pytest.mark.parametrize(("text", "expected"), [("a`b", "``a`b``"), ("`a", "`` `a ``"), ("a|b\nc", "`a\\|b c`")])
def test_code_keeps_its_text(text, expected):
    assert code(text) == expected


def test_lines_keep_no_markup():
    assert inline("a*b\n# c<d>") == "a\\*b \\# c\\<d\\>"
    assert indented("a\n# b") == "    a\n    # b"


def test_an_unknown_format_is_refused(exported):
    with pytest.raises(ConfigError, match="must be 'peft'"):
        exported[0].export(to="onnx")
