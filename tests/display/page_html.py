"""What the tests of pages share: a strict reader of HTML, a run of records alone, and a study of made-up cells."""

from __future__ import annotations

import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from support import make_tiny

from fedsim.configuration.text import config_text
from fedsim.records.labels import write_labels
from fedsim.records.run_folder import RunFolder
from fedsim.study.config import StudyConfig
from fedsim.study.figures import CellFigures, CurvePoint, FailedCell
from fedsim.study.summary import summarise

EVIL = "<script>alert('1')</script>&\"$x^"
VOID = {"meta", "link", "br", "img", "input", "hr"}
LOADING = {"src", "href", "data", "action", "poster", "srcset"}


class Reader(HTMLParser):
    """Reads a page and refuses what no page may have."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.headings: list[int] = []
        self.figures: list[str] = []
        """Ids of the titles of all pictures with a meaning."""
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self._raw = False
        self.feed(html)
        self.close()
        assert not self.stack, f"{self.stack[-1]} is not closed"
        assert len(self.ids) == len(set(self.ids)), "an id is there twice"
        missing = {name for name in self.references if name not in self.ids}
        assert not missing, f"no element has the id {sorted(missing)[0]}"
        steps = [after - before for before, after in zip(self.headings, self.headings[1:], strict=False)]
        assert self.headings[0] == 1 and self.headings.count(1) == 1 and max(steps, default=0) <= 1

    @property
    def text(self) -> str:
        return "\n".join(self.texts)

    def handle_starttag(self, tag, attributes):
        self._look(tag, dict(attributes))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self._look(tag, dict(attributes))

    def handle_endtag(self, tag):
        assert self.stack and self.stack[-1] == tag, f"</{tag}> closes {self.stack[-1:]}"
        self.stack.pop()

    def handle_data(self, data):
        if self.stack and self.stack[-1] in ("script", "style"):
            assert "http" not in data.replace('"http://www.w3.org/2000/svg"', "")  # a name, not an address
            return
        self.texts.append(data)
        if self.stack and self.rows and {"td", "th"} & set(self.stack):
            self.rows[-1][-1:] = [self.rows[-1][-1] + data]

    def _look(self, tag, attributes):
        assert not any(name.startswith("on") for name in attributes), f"{tag} runs code"
        for name in LOADING & set(attributes):
            assert attributes[name].startswith("#"), f"{tag} loads {attributes[name]}"
        if "id" in attributes:
            self.ids.append(attributes["id"])
        self.references += [*attributes.get("aria-labelledby", "").split()]
        self.references += [attributes["href"][1:]] if attributes.get("href", "").startswith("#") else []
        for value in attributes.values():
            self.references += [part.split(")")[0] for part in (value or "").split("url(#")[1:]]
        assert tag != "img" or attributes.get("alt")
        if tag == "svg" and "aria-hidden" not in attributes:
            assert attributes["role"] == "img"
            self.figures.append(attributes["aria-labelledby"].split()[0])
        if tag[0] == "h" and tag[1:].isdecimal():
            self.headings.append(int(tag[1:]))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        if tag == "th":
            assert attributes["scope"] in ("col", "row")


def made_run(folder: Path, *, finished: bool = True, classes: int = 3, clients: int = 12, rounds: int = 6) -> Path:
    """Write the records of a run whose texts are as bad as they can be."""
    config = make_tiny(
        name="a.run",
        model={"path": f"/models/{EVIL}"},
        partition={"clients": clients},
        sampling={"clients_per_round": 1},
        seed=3,
    )
    names = [f"{EVIL}{number}" for number in range(classes)]
    with RunFolder.create(folder) as run:
        run.write_config(config_text(config))
        spread = [[0.5, 1.0, 1.9, 2.5], [1.5, 1.4, 2.1, 3.5]]
        run.event("layers", layers=[2, 3], num_layers=4, scores=[1.0, 1.2, 2.0, 3.0], scores_spread=spread)
        for number in range(rounds):
            trained = number > 0
            run.round_record(
                {
                    "round": number,
                    "global_metric": 0.5 + number / 20,
                    "global_loss": 0.7 - number / 20,
                    "train_loss_first": 0.9 - number / 20 if trained else None,
                    "train_loss_last": 0.8 - number / 20 if trained else None,
                    "bytes_up": 3000 if trained else 0,
                    "bytes_down": 1000 if trained else 0,
                }
            )
        run.flush()
        counts_NC = np.random.default_rng(0).multinomial(30, np.full(classes, 1 / classes), size=clients)
        write_labels(run.labels, counts_NC, names)
        if finished:
            run.write_summary(made_summary(rounds - 1, clients))
    return folder


def made_summary(rounds: int, clients: int) -> dict:
    return {
        "metric_name": "accuracy",
        "global_metric": 0.5 + rounds / 20,
        "best_global_metric": 0.5 + rounds / 20,
        "best_global_round": rounds,
        "first_global_metric": 0.5,
        "personalised_metric": 0.9375,
        "rounds": rounds,
        "stopped": {"kind": "call", "reason": EVIL},
        "clients": clients,
        "layers": [2, 3],
        "num_layers": 4,
        "trained": f"prefix {EVIL}",
        "bytes_up": 3000 * rounds,
        "bytes_down": 1000 * rounds,
        "seconds_total": 3.0,
        "name": "a.run",
        "method": "fedpeptao",
        "task": EVIL,
        "model": EVIL,
        "executor": "local",
        "workers": [{}],
        "folder": f"runs/{EVIL}",
        "seed": 3,
        "config_hash": "0" * 64,
        "contents": {"weights": "1" * 64, "start": None},
        "versions": {"fedsim": "0", "torch": EVIL},
        "plugins": {f"{EVIL}.py": "2" * 64},
        "fuse": 2,
    }


def made_cells(arms: dict, datasets: dict, seeds: int, rounds: int = 12) -> list[CellFigures]:
    """Return cells in which each arm is a little worse than the one before it, the same on every call."""
    rng = np.random.default_rng(1)
    cells = []
    for dataset in datasets:
        for place, arm in enumerate(arms):
            for seed in range(seeds):
                top = 0.9 - 0.05 * place + 0.004 * rng.normal()
                metrics = [0.5 + (top - 0.5) * (1 - math.exp(-number / 3)) for number in range(rounds + 1)]
                curve = tuple(
                    CurvePoint(number, metric, 10**5 * number * (place + 1), 1.1 * number, 60.0 * number)
                    for number, metric in enumerate(metrics)
                )
                after = np.clip(rng.normal(top, 0.1, 20), 0, 1)
                clients = {
                    number: {"examples": 9.0, "before": 0.5, "after": float(value), "rounds": 2.0}
                    for number, value in enumerate(after)
                }
                cells.append(
                    CellFigures(
                        dataset,
                        arm,
                        seed,
                        f"runs/{EVIL}/{dataset}/{arm}/{seed}",
                        num_classes=2,
                        rounds=rounds,
                        first=0.5,
                        last=metrics[-1],
                        best=max(metrics),
                        best_round=rounds,
                        personalised=top,
                        clients=clients,
                        client_median=float(np.median(after)),
                        bytes_up=10**6 * (place + 1),
                        curve=curve,
                        layers=(1, 2),
                        scores=(1.0, 1.5 + 0.01 * seed, 2.0),
                        about={"versions": {"torch": EVIL}},
                    )
                )
    return cells


def made_study(
    arms: int = 3, datasets: tuple[str, ...] = ("one", "two"), seeds: int = 8
) -> tuple[StudyConfig, list, list]:
    """Return a study, its cells, and one of them that failed, with a bad sentence."""
    names = {f"arm-{number}": {"server.kind": "fedavg", "client.optimizer.lr": 0.01 * number} for number in range(arms)}
    held = {name: {"data.task": EVIL} for name in datasets}
    study = StudyConfig(name="a.study", base=f"{EVIL}.yaml", arms=names, datasets=held, seeds=seeds, target=0.75)
    cells = made_cells(names, held, seeds)
    lost = cells.pop()
    return study, cells, [FailedCell(lost.dataset, lost.arm, lost.seed, f"it failed: {EVIL}")]


def summary_of(made: tuple[StudyConfig, list, list]):
    return summarise(*made)
