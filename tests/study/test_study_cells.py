"""A study file becomes cells: who sets what, in which order, and what is refused."""

import pytest

from fedsim.core.errors import ConfigError
from fedsim.study.cells import read_study
from fedsim.study.fitting import run_bytes
from fedsim.study.plan import print_plan
from fedsim.study.search import check_search, choose, combinations, trials

BASE = "rounds: 4\npartition: {clients: 12}\nclient:\n  epochs: 3\n  optimizer: {lr: 0.5}\n"


@pytest.fixture
def study(tmp_path):
    """Return a function that reads a study of the given lines."""
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "other.yaml").write_text("rounds: 9\nserver: {kind: fedavg}\n")

    def read(text, *overrides):
        (tmp_path / "study.yaml").write_text("base: base.yaml\n" + text)
        return read_study(tmp_path / "study.yaml", overrides)

    return read


def test_each_place_overrides_the_one_before(study):
    found = study(
        "set: {rounds: 5, client.epochs: 1}\n"
        "arms:\n  a: {client.epochs: 2, client.batch_size: 3}\n  b: other.yaml\n"
        "datasets: {d: {client.batch_size: 4}}\n",
        "group_size=7",
    )
    a, b = found.cells()
    assert (a.config.rounds, a.config.client.epochs, a.config.client.batch_size, a.config.group_size) == (5, 2, 4, 7)
    assert a.config.client.optimizer.lr == 0.5
    assert (b.config.rounds, b.config.client.epochs, b.config.server.kind) == (5, 1, "fedavg")
    assert b.config.client.optimizer.lr != 0.5, "a config file takes the base's place"


def test_groups_of_keys_are_merged_not_replaced(study):
    (cell,) = study("set: {client: {batch_size: 3}}\narms: {a: }\n").cells()
    assert (cell.config.client.batch_size, cell.config.client.epochs) == (3, 3)


def test_a_task_of_ones_own_takes_the_place_of_a_named_one(study):
    own = "{name: own, fields: [text], labels: [a, b]}"
    found = study(
        f"set: {{data.task: sst2, model.head.kind: classifier}}\narms: {{a: }}\ndatasets: {{d: {{data.task: {own}}}, e: }}\n"
    )
    first, second = found.cells()
    assert first.config.data.task.labels == ("a", "b")
    assert second.config.data.task == "sst2"


def test_one_seed_of_everything_comes_before_the_next(study):
    found = study("arms: {a: , b: }\nseeds: 2\narm_seeds: {b: [1, 7]}\ndatasets: {d: , e: }\n").cells()
    assert [(c.seed, c.dataset, c.arm) for c in found] == [
        (0, "d", "a"), (0, "e", "a"), (1, "d", "a"), (1, "d", "b"), (1, "e", "a"), (1, "e", "b"), (7, "d", "b"), (7, "e", "b"),
    ]  # fmt: skip
    assert all(cell.config.seed == cell.seed for cell in found)
    assert len({cell.folder for cell in found}) == len(found)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("arms: {a: {client.epoch: 2}}\n", r"study.yaml, arms.a: client.epoch=2.*there is no key.*client.epoch"),
        ("arms: {a: }\nset: {rounds: 0}\n", r"study.yaml, set: rounds=0.*rounds"),
        ("arms: {a: {seed: 2}}\n", r"arms.a: a study sets seed itself"),
        ("arms: {a: nowhere.yaml}\n", r"there is no config file .*nowhere.yaml"),
        (
            "arms: {a: quickstart}\n",
            r"study.yaml, arms.a: there is no config file .*quickstart; presets' names are not taken here",
        ),
        ("arms: {a: }\nreference: b\n", r"reference names the arm 'b', which does not exist"),
        ("arms: {a: }\narm_seeds: {aa: 3}\n", r"arm_seeds.aa .*did you mean 'a'"),
        ("arms: {a: }\nexpect: {base: {b: {at_least: 1}}}\n", r"expect.base.b"),
        ("arms: {a: }\ntarget: {sst: 0.5}\n", r"target.sst names the data set"),
        ("arms: {a: }\nseeds: [1, 1]\n", r"line 3: seeds: \[1, 1\] has a seed twice"),
        ("arms: {a: }\narm_seeds: {a: [1, 1]}\n", r"arm_seeds.a: \[1, 1\] has a seed twice"),
        *(
            (f"arms: {{a: }}\nseeds: {seeds}\n", r"line 3: seeds: .* gives no seeds; .* from 1 to 10000, or a list")
            for seeds in ("-1", "0", "true", "[true]", "3.5", "many", "null", "99999999", "9" * 30)
        ),
        ("arms: {}\n", r"arms is a group of keys, but must be a group of at least 1"),
        ("arms: {..: }\n", r"arms.*: a name of dots alone would be another folder"),
        ("arms: {a: }\ndatasets: {.: }\n", r"datasets.*: a name of dots alone would be another folder"),
        ("arms: {a: {client.epochs: 1, client: {epochs: 2}}}\n", r"study.yaml, arms.a: client.epochs is given twice"),
        ("arms: {a: {client.epochs.x: 1}}\n", r"study.yaml, arms.a: .*sets a key inside client.epochs"),
        ("arms: {a: }\ndevices: {uplink_megabits: {sigma: 1}}\n", r"uplink_megabits.median. is missing"),
        ("arms: {a: }\nexpect: {base: {}}\n", r"expect.base expects nothing; name an arm"),
        ("arms: {a: }\nexpect: {base: {a: {}}}\n", r"expect.base.a expects nothing; give at_least"),
        ("arms: {a: }\nexpect: {base: {a: {at_least: 2, at_most: 1}}}\n", r"at_least 2 is more than at_most 1"),
        ("arm: {a: }\n", r"there is no key 'arm'.*arms"),
        ("arms: {a/b: }\n", r"arms"),
        ("arms: {a: }\ntarget: true\n", r"line 3: target is true, but must be a number"),
        ("arms: {a: }\ntarget: {base: true}\n", r"line 3: target.base is true, but must be a number"),
        ("arms: {a: }\nexpect: {base: {a: {at_least: true}}}\n", r"at_least is true, but must be a number"),
        ("arms: {a: }\nsearch: {trials: true}\n", r"search.trials is true, but must be a whole number"),
    ],
)
def test_mistakes_are_named_with_their_place(study, text, said):
    with pytest.raises(ConfigError, match=said) as told:
        study(text)
    assert "\n" not in str(told.value)


def test_overrides_of_what_the_study_sets_are_refused(study):
    with pytest.raises(ConfigError, match="a study sets seed itself"):
        study("arms: {a: }\n", "seed=3")


class TestSearch:
    TEXT = "arms: {a: , b: }\nsearch:\n  keys: {client.optimizer.lr: [0.1, 0.2], client.epochs: [1, 2]}\n"

    def test_every_arm_has_the_same_budget(self, study):
        found = study(self.TEXT + "  trials: 3\n  seeds: [5, 6]\n  rounds: 2\n")
        cells = trials(found)
        assert len(cells) == 2 * 3 * 2
        by_arm = {arm: [(c.trial, c.seed) for c in cells if c.arm == arm] for arm in "ab"}
        assert by_arm["a"] == by_arm["b"]
        assert combinations(found.config.search, "a") == combinations(found.config.search, "b")
        assert {(c.config.rounds, c.config.data.validation_from_train) for c in cells} == {(2, 0.2)}
        assert all(c.config.data.validation_from_train is None for c in found.cells())

    @pytest.mark.parametrize("override", ["rounds=7", "data.validation_from_train=0.5", "data={task: reviews}"])
    def test_no_override_takes_its_rounds_or_its_split(self, study, override):
        found = study(self.TEXT + "  rounds: 2\n", override)
        assert {(c.config.rounds, c.config.data.validation_from_train) for c in trials(found)} == {(2, 0.2)}
        assert {c.config.rounds for c in found.cells()} == {7 if override == "rounds=7" else 4}

    def test_without_rounds_of_its_own_it_has_those_of_the_study(self, study):
        assert {c.config.rounds for c in trials(study(self.TEXT, "rounds=7"))} == {7}

    def test_unequal_budgets_are_refused(self, study):
        found = study(self.TEXT + "  arms: {b: {client.epochs: [1]}}\n")
        with pytest.raises(ConfigError, match=r"different budgets.*a 4, b 1.*search.trials: 1"):
            check_search(found)

    def test_an_override_of_what_it_chooses_is_refused(self, study):
        with pytest.raises(ConfigError, match="sets what the search chooses"):
            check_search(study(self.TEXT, "client.epochs=3"))

    @pytest.mark.parametrize(
        ("lines", "said"),
        [
            ("keys: {client.epochs: [1, 1]}", r"search.keys.client.epochs has a value twice"),
            ("arms: {b: {client.epochs: [1]}}", r"the search has no keys for a;"),
            ("keys: {rounds: [1, 2]}\n  rounds: 1", r"cannot try rounds, which search.rounds sets"),
            ("keys: {data.validation_from_train: [0.1]}", r"cannot try data.*, which search.share sets"),
            ("keys: {rounds: [1]}\n  arms: {a: {rounds: [2]}, b: {rounds: [3]}}", r"search.keys has no use"),
        ],
    )
    def test_what_is_tried_in_vain_is_refused(self, study, lines, said):
        with pytest.raises(ConfigError, match=said):
            check_search(study(f"arms: {{a: , b: }}\nsearch:\n  {lines}\n"))

    @pytest.mark.parametrize("override", ["client={epochs: 3}", "client.optimizer={lr: 3}", "client.optimizer.lr=3"])
    def test_an_override_of_a_group_with_what_it_chooses_is_refused(self, study, override):
        with pytest.raises(ConfigError, match="sets what the search chooses"):
            check_search(study(self.TEXT, override))

    def test_an_override_beside_what_it_chooses_is_not(self, study):
        check_search(study(self.TEXT, "client={batch_size: 3}"))

    def test_a_search_for_nothing_is_refused(self, study):
        with pytest.raises(ConfigError, match="no keys"):
            check_search(study("arms: {a: }\nsearch: {rounds: 2}\n"))

    def test_the_best_mean_is_chosen_and_used(self, study):
        found = study(self.TEXT + "  seeds: [1, 2]\n")
        metrics = {cell: cell.trial / 10 for cell in trials(found)}
        metrics |= {c: float("nan") for c in trials(found) if (c.arm, c.trial, c.seed) == ("b", 3, 2)}
        a, b = choose(found, metrics)
        assert a.values == {"client.optimizer.lr": 0.2, "client.epochs": 2}
        assert b.values == {"client.optimizer.lr": 0.2, "client.epochs": 1}, "a diverged run does not win"
        chosen = {(c.dataset, c.arm): c.values for c in (a, b)}
        assert {c.arm: c.config.client.epochs for c in found.cells(chosen)} == {"a": 2, "b": 1}

    def test_ties_go_to_the_first(self, study):
        found = study(self.TEXT)
        assert choose(found, dict.fromkeys(trials(found), 0.5))[0].values == combinations(found.config.search, "a")[0]


def test_a_run_is_charged_the_frozen_states_of_its_own_examples(study):
    """Not all that the cache may hold; and nothing if the first layer has a prompt, or no cache is kept."""
    found = {}
    counted = "data.train_examples: 60, data.validation_examples: 20"
    for key in ("", counted, "model.trunk_cache.memory_mb: 0", "layers.choose: all"):
        cells = study(f"arms: {{a: {{{key}}}}}\n").cells()
        found[key] = run_bytes(cells), run_bytes(cells, counted=False)
    (every, most), (few, bound), *nothing = found.values()
    assert most == bound > every > few > nothing[0][0]
    assert few - nothing[0][0] == 80 * 128 * 64 * 4, "examples x tokens x width x bytes"
    assert all(exact == at_most for exact, at_most in nothing)


def test_a_plan_writes_nothing(study, tmp_path, capsys):
    from fedsim.display.screen import Screen

    found = study("arms: {a: , b: }\nseeds: 3\n")
    print_plan(found, tmp_path / "out", None, Screen())
    assert not (tmp_path / "out").exists()
    said = capsys.readouterr().out
    assert "240" in said, "client updates of all runs: 6 x 4 x 10"
    assert "0 of 6 are finished" in said
