"""Keys that a choice has no use for: every one is refused where it is given, and is nowhere in a recorded config."""

import re

import pytest
import yaml
from pydantic import ValidationError
from support import ROOT, sweep, useless_keys

from clients.tuners.config import ONE_PLACE
from fedsim.configuration.errors import sentence
from fedsim.configuration.schema import Config, build_config, read_config
from fedsim.configuration.text import config_text
from fedsim.core.errors import ConfigError
from fedsim.core.method import METHODS
from fedsim.core.schema import Schema
from fedsim.core.uses import EVERY_KEY
from partitions.config import PartitionConfig
from server.config import ServerConfig

RULES = "layers.share_rule=density"
DEVICES = "world.devices.latency_seconds=0"
SEARCH = ["client.optimizer.kind=cma_es", "tuner.kind=soft_prompt", "tuner.projection=9", "server.kind=fedbpt"]
PRIVATE = [
    "server.kind=fedavg", "server.weighting=uniform", "layers.choose=all", "partition.holdout_fraction=0",
    "privacy={clip_norm: 1.0, noise_multiplier: 1.0}",
]  # fmt: skip

WRITES = ["model.head.kind=generation", "evaluation.generate.examples=3"]
TASK = "data.task={name: t, fields: [a, b], labels: [n, y]}"
ANSWERS = "data.task={name: t, fields: [a, b], response: '{b}', template: '{a}'}"
CASES = {
    "data.task.chat": ([ANSWERS], [TASK], "true"),
    "data.task.system": ([ANSWERS, "data.task.chat=true"], [ANSWERS], "Be brief."),
    "data.task.learn": (["data.task={name: t, fields: [a], dialogue: true, chat: true}"], [ANSWERS], "all_answers"),
    "data.task.optional_fields": ([ANSWERS], [TASK], "[a]"),
    "data.task.template_without": ([ANSWERS, "data.task.optional_fields=[a]"], [ANSWERS], "{a: Say something.}"),
    "data.task.template": ([TASK], ["data.task={name: t, fields: [a], dialogue: true, chat: true}"], "'{a} {b} <mask>'"),
    "data.task.label_field": ([TASK], [ANSWERS], "y"),
    "data.task.label_words": ([TASK], [ANSWERS], "[no, yes]"),
    "stop.metric": ([*WRITES, "evaluation.generate.every=1", "stop.target=0.5"], WRITES, "exact_match"),
    "evaluation.generate": (WRITES, [], "{examples: 4}"),
    "evaluation.generate.client_examples": ([*WRITES, "layers.unselected=local"], WRITES, "3"),
    **{f"evaluation.generate.{key}": ([*WRITES, "evaluation.generate.do_sample=true"], WRITES, value)
       for key, value in {"temperature": "0.5", "top_k": "9", "top_p": "0.9", "seed": "7"}.items()},
    "tracking.page_every_seconds": ([], ["tracking.plots=false"], "7"),
    "model.head.pooling": (["model.head.kind=classifier"], [], "mean"),
    "model.head.init_std": (["model.head.kind=classifier"], [], "0.5"),
    "model.head.loss": ([], ["model.head.kind=classifier"], "vocabulary"),
    "model.head.calibration": ([], ["model.head.kind=classifier"], "empty_text"),
    "model.head.decoding": ([], ["model.head.kind=classifier"], "stepwise"),
    "data.task.word_end": (
        ["data.task={name: t, fields: [x], labels: [a, b], template: '{x} <mask>', label_words: [no, [yes, sure]]}"],
        ["data.task={name: t, fields: [x], labels: [a, b]}"],
        " . <eos>",
    ),
    "model.products": ([], ["model.dtype=float64"], "float32"),
    "model.gradient_checkpointing": ([], ["model.compile=true"], "true"),
    "model.offload": (["ray.num_gpus_per_actor=1"], ["model.device=cpu"], "true"),
    "model.trunk_cache.memory_mb": ([], ["model.trunk_cache.dtype=off"], "7"),
    "model.trunk_cache": ([], ["client.dropout=true"], "{dtype: bfloat16}"),
    "prompt.init_std": ([], ["prompt.start_from=x"], "0.5"),
    "prompt": ([], ["tuner.kind=lora"], "{length: 3}"),
    "layers": ([], ["tuner.kind=soft_prompt"], "{choose: all}"),
    "tuner.rank": (["tuner.kind=lora"], [], "3"),
    "tuner.alpha": (["tuner.kind=lora"], [], "3"),
    "tuner.scaling": (["tuner.kind=lora"], [], "rslora"),
    "tuner.train": (["tuner.kind=lora"], [], "b"),
    "tuner.exact": (["tuner.kind=lora", "server.kind=fedavg"], ["tuner.kind=lora", "tuner.train=b"], "true"),
    "tuner.exchange": (["tuner.kind=lora"], ["tuner.kind=lora", "tuner.train=b"], "a"),
    "tuner.start_from": (["tuner.kind=ia3"], [], "elsewhere"),
    "tuner.targets": (["tuner.kind=ia3"], [], "[query]"),
    "tuner.feedforward_targets": (["tuner.kind=ia3"], ["tuner.kind=lora"], "[output.dense]"),
    "tuner.bottleneck": (["tuner.kind=adapter"], ["tuner.kind=late_prompt", "tuner.generator=none"], "3"),
    "tuner.length": (["tuner.kind=soft_prompt"], [], "3"),
    "tuner.start": (["tuner.kind=soft_prompt"], ["tuner.kind=late_prompt"], "random"),
    "tuner.projection": (["tuner.kind=soft_prompt"], [], "3"),
    "tuner.depth": (["tuner.kind=late_prompt"], ["tuner.kind=soft_prompt"], "1"),
    "tuner.generator": (["tuner.kind=late_prompt"], ["tuner.kind=soft_prompt"], "appg"),
    "tuner.terms": (["tuner.kind=generated_prompt"], [], "4"),
    "tuner.sources": (["tuner.kind=prompt_mixture"], [], "[elsewhere]"),
    "tuner.random_sources": (["tuner.kind=prompt_mixture"], ["tuner.kind=prompt_mixture", "tuner.sources=[elsewhere]"], "3"),
    "tuner.temperature": (["tuner.kind=prompt_mixture"], [], "2"),
    "tuner.layer_norms": (["tuner.kind=adapter"], [], "false"),
    "compression.up.share": (["compression.up.kind=random_k", "client.correction=none"], ["compression.up.kind=int8"], "0.3"),
    "compression.up.block": (["compression.up.kind=int8"], [], "layer"),
    "compression.down.share": (["compression.down.kind=top_k"], [], "0.3"),
    "compression.down.block": (["compression.down.kind=sign"], ["compression.down.kind=float16"], "64"),
    "compression.error_feedback": (["compression.up.kind=int4"], ["compression.down.kind=int4"], "true"),
    "layers.score": ([], ["layers.choose=top"], "l1"),
    "layers.score_batch_size": ([], ["layers.choose=all"], "3"),
    "layers.score_clients": ([], ["layers.choose=bottom"], "3"),
    "layers.score_last": ([], ["layers.choose=random"], "false"),
    "layers.score_padding": ([], ["layers.choose=fixed", "layers.fixed=[1]"], "keep"),
    "layers.share_rule": (["layers.choose=top"], ["layers.choose=all"], "density"),
    "layers.share": ([], [RULES], "0.3"),
    "layers.spectrum": ([RULES], [], "{probes: 2}"),
    "layers.spectrum.directions": (["layers.share_rule=eigengap"], [RULES], "3"),
    "layers.spectrum.radius": (["layers.share_rule=eigengap"], [RULES], "0.5"),
    "layers.fixed": (["layers.choose=fixed"], [], "[1]"),
    "layers.unselected": ([], ["layers.choose=all"], "local"),
    "data.path": (["data.source=files"], ["data.source=embedded"], "x"),
    "data.subset": (["data.path=x"], [], "x"),
    "data.train_file": (["data.path=x"], ["data.source=hub"], "x"),
    "data.validation_file": (["data.path=x"], ["data.source=hub"], "x"),
    "data.header": (["data.path=x"], ["data.source=hub"], "false"),
    "data.delimiter": (["data.path=x"], [], "tab"),
    "data.encoding": (["data.path=x"], [], "latin-1"),
    "data.label_of_file": (["data.path=x"], ["data.source=hub"], "{a: b}"),
    "data.hub_name": (["data.source=hub"], [], "x"),
    "data.hub_subset": (["data.source=hub"], ["data.path=x"], "x"),
    "data.train_split": (["data.source=hub"], ["data.path=x"], "x"),
    "data.validation_split": (["data.source=hub"], ["data.source=hub", "data.holdout=0.1"], "x"),
    "data.columns": (["data.source=hub"], [], "{text: sentence}"),
    "data.holdout": (["data.path=x"], [], "0.1"),
    "partition.alpha": (["partition.kind=dirichlet_class"], ["partition.kind=iid"], "0.5"),
    "partition.size_alpha": ([], ["partition.kind=dirichlet_class"], "2"),
    "partition.classes_per_client": (["partition.kind=label_shards"], [], "1"),
    "partition.column": (["partition.kind=by_column"], [], "author"),
    "sampling.clients_per_round": ([], ["server.kind=fedavg", "buffer.size=3"], "7"),
    "sampling.delay.device_spread": (["sampling.delay.seconds_per_example=1"], [], "0.1"),
    "sampling.delay.visit_spread": (["sampling.delay.seconds_per_example=1"], [], "0.2"),
    "sampling.draw": (PRIVATE, [], "poisson"),
    "stop.epsilon": (PRIVATE, [], "3"),
    "privacy.target_epsilon": ([*PRIVATE[:-1], "privacy={clip_norm: 1.0}"], PRIVATE, "3"),
    "sampling.tiers": (["sampling.kind=tiers", DEVICES], [], "3"),
    "sampling.candidates": (["sampling.kind=power_of_choice"], [], "30"),
    "sampling.exploration": (["sampling.kind=oort", DEVICES], [], "0.3"),
    "sampling.speed_penalty": (["sampling.kind=oort", DEVICES], [], "1"),
    "world.deadline_seconds": ([DEVICES], [], "60"),
    "world.over_selection": ([DEVICES], [], "0.3"),
    "world.devices.slow_factor": (["world.devices.slow_share=0.1"], [DEVICES], "3"),
    **{f"world.devices.availability.{key}": ([DEVICES], ["world.devices.availability.kind=always"], value)
       for key, value in {"share": "0.5", "cycle_hours": "3"}.items()},
    **{f"world.devices.availability.{key}": (["world.devices.availability.kind=diurnal"], [DEVICES], "3")
       for key in ("peak_hour", "peak_spread_hours")},
    "world.devices.availability.file": (["world.devices.availability.kind=trace"], [DEVICES], "x"),
    "client.epochs": ([], ["client.steps=3"], "4"),
    "client.optimizer.beta1": (["client.optimizer.kind=adamw_published"], ["client.optimizer.kind=sgd"], "0.5"),
    "client.optimizer.beta2": ([], ["client.optimizer.kind=sgd"], "0.5"),
    "client.optimizer.eps": ([], ["client.optimizer.kind=sgd"], "0.5"),
    "client.optimizer.momentum": (["client.optimizer.kind=sgd"], [], "0.5"),
    **{f"client.optimizer.{key}": (SEARCH, [], value) for key, value in {"population": "7", "sigma": "0.5"}.items()},
    **{f"client.optimizer.{key}": ([], SEARCH, "0.5") for key in ("lr", "weight_decay", "clip_norm")},
    "client.optimizer.moments": ([], SEARCH, "keep"),
    "client.schedule": ([], SEARCH, "{warmup_steps: 3}"),
    "client.dropout": ([], SEARCH, "true"),
    "client.schedule.total_steps": (["client.schedule.kind=cosine"], [], "all_data"),
    "client.proximal_mu": (["server.kind=fedprox"], ["server.kind=fedavg"], "0.5"),
    "server.lr_min": (["server.lr_decay=0.9"], [], "0.01"),
    "server.trim_share": (["server.kind=fedavg", "server.aggregation=trimmed_mean"], [], "0.1"),
    "server.clip_norm": (["server.kind=fedavg", "server.aggregation=norm_clipping"], [], "3"),
    "server.assumed_attackers": (["server.kind=fedavg", "server.aggregation=multi_krum"], [], "1"),
    "server.kept_clients": (["server.kind=fedavg", "server.aggregation=multi_krum"], [], "1"),
    "attack.clients": (["attack.kind=label_flip"], [], "3"),
    "attack.scale": (["attack.kind=sign_flip", "attack.clients=1"], ["attack.kind=noise", "attack.clients=1"], "2"),
    "attack.std": (["attack.kind=noise", "attack.clients=1"], [], "2"),
    "tracking.group": (["tracking.mlflow={}"], [], "x"),
    "tracking.flush_seconds": (["tracking.tensorboard=true"], [], "3"),
    "cache.folder": ([], ["cache.enabled=false"], "x"),
    "cache.max_gigabytes": ([], ["cache.enabled=false"], "2"),
    "ray.num_cpus": ([], ["ray.address=auto"], "3"),
    "ray.num_gpus": ([], ["ray.address=auto"], "3"),
    "ray.object_store_mb": ([], ["ray.address=auto"], "300"),
    "ray.placement": (["ray.address=auto"], [], "own"),
    "ray.memory": (["ray.address=auto"], [], "none"),
    "ray.labels": (["ray.address=auto"], [], "{zone: eu}"),
    "ray.accelerator_type": (["ray.address=auto"], [], "H100"),
    "ray.wait_timeout_seconds": (["ray.address=auto"], ["ray.address=auto", "ray.placement=none"], "9"),
}  # fmt: skip
"""Each key: choices that give it a use, choices that take it, and a value of its own."""


def all_uses(schema: type[Schema], prefix: str = "") -> set[str]:
    """Return all dotted keys of the tables of a schema and the sections in it."""
    from fedsim.configuration.errors import inner_schema

    keys = {prefix + key for key in schema.all_uses()}
    for name, field in schema.model_fields.items():
        if (inner := inner_schema(field.annotation)) is not None:
            keys |= all_uses(inner, f"{prefix}{name}.")
    if schema is ServerConfig:
        keys |= {prefix + key for kind in METHODS for key in METHODS[kind].Config.all_uses()}
    return keys


@pytest.fixture
def read(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("rounds: 3\n")
    return lambda *overrides: read_config(path, overrides)


def names(config: Config, key: str) -> bool:
    """Whether the config's text has the key."""
    found = yaml.safe_load(config_text(config))
    for part in key.split("."):
        if not isinstance(found, dict) or part not in found:
            return False
        found = found[part]
    return True


def assert_reads_back(config: Config, tmp_path):
    (tmp_path / "again.yaml").write_text(config_text(config))
    again = read_config(tmp_path / "again.yaml")
    assert again == config and again.identity == config.identity


def test_the_cases_are_all_keys_of_the_tables():
    assert set(CASES) == all_uses(Config)


@pytest.mark.parametrize("key", CASES)
def test_a_key_is_refused_and_left_out_where_it_has_no_use_and_kept_where_it_has_one(read, key, tmp_path):
    gives, takes, value = CASES[key]
    used = read(*gives, f"{key}={value}")
    assert names(used, key) and key not in useless_keys(used)
    assert_reads_back(used, tmp_path)
    with pytest.raises(ConfigError) as caught:
        read(*takes, f"{key}={value}")
    assert re.match(
        rf"override .*: {re.escape(key)}[.\w]* has no use with [\w.]+=.*; (it|give|with|all)", str(caught.value)
    )
    without = read(*takes)
    assert not names(without, key) and key in useless_keys(without)
    assert read(*takes, f"{key}=") == without
    assert_reads_back(without, tmp_path)


def test_a_prompt_that_starts_from_an_earlier_one_has_no_other_start(read):
    with pytest.raises(
        ConfigError, match=r"tuner\.start has no use with tuner\.start_from=x; it is for a prompt that starts"
    ):
        read("tuner.kind=soft_prompt", "tuner.start_from=x", "tuner.start=random")


def test_trunks_are_not_kept_where_all_layers_have_prompts(read):
    with pytest.raises(
        ConfigError, match=r"model\.trunk_cache\.dtype has no use with layers\.unselected=local; all layers"
    ):
        read("model.trunk_cache.dtype=off", "layers.unselected=local")


CONFIGS = [
    path
    for path in sorted((ROOT / "configs").rglob("*.yaml"))
    if "apiVersion" not in yaml.safe_load(path.read_text()) and "studies" not in path.parts
]
FIRST = {path.parent: path for path in reversed(CONFIGS)}
"""The first config of each folder."""
KINDS = {
    "server.kind": ["fedpeptao", "fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "scaffold", "fedprox"],
    "partition.kind": ["iid", "dirichlet_label", "dirichlet_class", "dirichlet_quantity", "label_shards"],
    "client.optimizer.kind": ["adamw", "adamw_published", "sgd"],
    "client.schedule.kind": ["constant", "cosine"],
    "attack.kind": ["none", "label_flip", "sign_flip", "noise"],
    "layers.choose": ["all", "top", "bottom", "random", "score"],
}  # fmt: skip
NEEDED = {"attack.kind": ["attack.clients=2"], "server.kind": ["client.correction=auto"]}
APART = {
    "server.kind": ["client.optimizer.kind=adamw"],
    "client.optimizer.kind": ["server.kind=fedavg"],
    "client.schedule.kind": ["client.optimizer.kind=adamw", "server.kind=fedavg"],
}
"""What a config of searches without gradients needs besides, for methods and optimizers that have them."""


@pytest.mark.parametrize("path", sweep(CONFIGS, FIRST.values()), ids=lambda path: path.stem)
@pytest.mark.parametrize("key", KINDS)
def test_every_kind_in_every_shipped_config_reads_back_to_the_same_config(path, key, tmp_path):
    """Where a key of the file has no use with another kind, the sentence says how to remove it."""
    if key.startswith("layers.") and read_config(path).tuner.kind in ONE_PLACE:
        pytest.skip("it has no layers to choose")
    for kind in KINDS[key]:
        overrides = [f"{key}={kind}", *(NEEDED.get(key, []) if kind != "none" else [])]
        overrides += APART.get(key, []) if path.stem == "fedbpt" else []
        for _ in range(20):
            try:
                config = read_config(path, overrides)
                break
            except ConfigError as error:
                remedy = re.search(r"; give ([\w.]+)= to remove the file's value$", str(error))
                assert remedy is not None, error
                overrides.append(f"{remedy[1]}=")
        assert_reads_back(config, tmp_path)


def test_the_sentence_names_the_file_the_key_and_all_others_that_have_no_use_either(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("partition:\n  alpha: 0.5\n  size_alpha: 2.0\n")
    with pytest.raises(ConfigError) as caught:
        read_config(path, ["partition.kind=iid"])
    assert str(caught.value) == (
        f"{path}, line 2: partition.alpha has no use with partition.kind=iid (nor has partition.size_alpha); it is a key of "
        "dirichlet_label, dirichlet_class, dirichlet_quantity; give partition.alpha= to remove the file's value"
    )


def test_what_a_config_was_is_dumped_whole_where_it_is_asked_for():
    config = build_config({"partition": {"kind": "iid"}})
    assert "alpha" not in config.model_dump()["partition"]
    whole = config.model_dump(mode="json", context=EVERY_KEY)
    assert whole["partition"]["alpha"] == 1.0
    assert (
        PartitionConfig.model_validate(whole["partition"], context=EVERY_KEY).model_dump()
        == config.partition.model_dump()
    )
    assert config.identity == build_config({"partition": {"kind": "iid", "alpha": None}}).identity


class Optimizer(Schema):
    kind: str = "fedavg"
    lr: float = 1.0

    @classmethod
    def kinds_with(cls, key):
        return "server.kind", {"momentum": ["fedavgm", "fedadam"]}.get(key, [])


class Root(Schema):
    server: Optimizer = Optimizer()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"momentum": 1}, "server.momentum has no use with server.kind=fedavg; it is a key of fedavgm, fedadam"),
        ({"kind": "a", "momentum": 1}, "server.momentum has no use with server.kind=a; it is a key of fedavgm, fedadam"),
        ({"kind": None, "momentun": 1}, "there is no key 'server.momentun' (did you mean 'server.kind'?)"),
    ],
)  # fmt: skip
def test_a_section_with_other_keys_for_each_kind_says_which_kinds_have_a_key(values, expected):
    given = {"server": values}
    with pytest.raises(ValidationError) as caught:
        Root.model_validate(given)
    assert (
        sentence(caught.value, Root, lambda key: ".".join(map(str, key)), given)
        == f"server.{[*values][-1]}: {expected}"
    )
