"""What a run's folder, or URL, holds is there again as an object."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
from support import make_tiny

import fedsim
from fedsim.core.errors import CheckpointError, ConfigError, FedsimError
from fedsim.records.columns import CLIENT_COLUMNS, ROUND_COLUMNS
from fedsim.records.run_folder import RunFolder
from fedsim.records.tables import ParquetRows, read_table


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("finished") / "run"
    settled = {"client": {"fuse": 2}, "model": {"products": "float32"}}
    config = make_tiny(output=str(path), executor="local", rounds=2, **settled)
    return path, config, fedsim.run(config, progress=False)


def place_of(path, kind):
    return {"path": path, "text": str(path), "url": f"file://{path}"}[kind]


@pytest.mark.parametrize("kind", ["path", "text", "url"])
def test_a_finished_run_is_there_again(finished, kind):
    path, config, summary = finished
    run = fedsim.load_run(place_of(path, kind))
    assert run.summary == json.loads((path / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert run.config == config
    assert run.rounds.to_pylist() == pq.read_table(path / "rounds.parquet").to_pylist()
    assert run.clients.to_pylist() == pq.read_table(path / "clients.parquet").to_pylist()
    assert [event["round"] for event in run.events("round")] == [1, 2]
    assert len(run.events()) == len((path / "metrics.jsonl").read_text().splitlines())
    assert fedsim.load_prompt(run.prompt).layers == fedsim.load_prompt(run.best_prompt).layers
    assert "2 rounds" in repr(run) and str(path) in repr(run)
    assert "Run finished" in run._repr_html_() and "accuracy" in run._repr_html_()


def test_pictures(finished, tmp_path):
    run = fedsim.load_run(finished[0])
    for what in ("metric", "loss", "bytes"):
        picture = run.plot(what)
        assert picture._repr_png_().startswith(b"\x89PNG")
        assert picture.save(tmp_path / f"{what}.png").read_bytes() == picture.png
    with pytest.raises(ConfigError, match=r"there is no picture 'metrics' \(did you mean 'metric'\?\); give one of"):
        run.plot("metrics")
    with pytest.raises(FedsimError, match="cannot be written: No such file"):
        picture.save(tmp_path / "none" / "a.png")


def test_a_run_that_is_going_on_can_be_looked_at(tmp_path):
    path = tmp_path / "run"
    with fedsim.Run(make_tiny(output=str(path), executor="local", client={"fuse": 2}), progress=False) as going:
        next(going)
        run = fedsim.load_run(path)
        assert run.summary is None and run.rounds["round"].to_pylist() == [0, 1]
        assert "not finished, 1 rounds on record" in repr(run) and "not finished" in run._repr_html_()
        assert fedsim.load_run(going.folder).config.rounds == 3


def test_tables_without_rows(tmp_path):
    with RunFolder.create(tmp_path / "run") as folder:
        folder.event("layers", layers=[0])
    run = fedsim.load_run(tmp_path / "run")
    assert run.rounds.num_rows == run.clients.num_rows == 0
    assert run.rounds.column_names == list(ROUND_COLUMNS) and run.clients.column_names == list(CLIENT_COLUMNS)
    with pytest.raises(ConfigError, match="there is nothing on record yet to draw the metric of"):
        run.plot()


@pytest.mark.parametrize("rows", [0, 3, 4, 9, 12])
def test_a_table_is_read_with_its_parts_also_between_the_steps_of_joining(tmp_path, rows):
    path, columns = tmp_path / "rounds.parquet", {"round": "int32"}
    table = ParquetRows(path, columns, part_rows=4)
    table.append([{"round": number} for number in range(rows)])
    table.flush()
    assert read_table(path, columns)["round"].to_pylist() == list(range(rows))
    parts = list(tmp_path.glob("rounds-*.parquet"))
    kept = [shutil.copy(part, tmp_path / f"copy{part.name}") for part in parts]
    table.close()
    for part, copy in zip(parts, kept, strict=True):
        shutil.move(copy, part)  # as if the process had died before it could remove them
    assert read_table(path, columns)["round"].to_pylist() == list(range(rows))


@pytest.mark.parametrize("kind", ["path", "url"])
def test_what_is_no_run_is_one_sentence(tmp_path, kind):
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match=r"holds no fedsim run; give the folder of a run"):
            fedsim.load_run(place_of(place, kind))


def test_damaged_records_are_one_sentence(finished, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(finished[0], path)
    for name in ("summary.json", "rounds.parquet"):
        (path / name).write_bytes(b"{")
    (path / "config.yaml").unlink()
    run = fedsim.load_run(path)
    with pytest.raises(CheckpointError, match=r"summary\.json cannot be read as JSON"):
        run.summary  # noqa: B018
    with pytest.raises(CheckpointError, match=r"rounds\.parquet cannot be read as Parquet"):
        run.rounds  # noqa: B018
    with pytest.raises(CheckpointError, match=r"config\.yaml cannot be read: No such file"):
        run.config  # noqa: B018
