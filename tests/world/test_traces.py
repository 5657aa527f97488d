"""Files of devices and traces: what is written reads back, and a mistake is one sentence with its place."""

import datetime
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.core.errors import DataError
from fedsim.world.config import DevicesConfig, WorldConfig
from fedsim.world.devices import MEGABIT, Hardware
from fedsim.world.traces.plain_pickle import read_plain_pickle
from fedsim.world.traces.read import read_recorded


def world(devices=None, traces=None):
    values = {} if devices is None else {"file": str(devices)}
    if traces is not None:
        values["availability"] = {"kind": "trace", "file": str(traces)}
    return WorldConfig(devices=DevicesConfig.model_validate(values))


def write(path, columns):
    """Write columns as CSV or Parquet."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
        return path
    rows = zip(*columns.values(), strict=True)
    cells = [",".join("" if cell is None else str(cell) for cell in row) for row in (columns, *rows)]
    path.write_text("\n".join(cells) + "\n")
    return path


TRACES = {
    "device": ["a", "b", "a", "c"],
    "available_from": [10.0, 0.5, 60.25, None],
    "available_until": [50.0, 30.0, 100.0, None],
    "trace_seconds": [200.0, 100.0, None, 100.0],
}
DAYS = {"a": ([(10.0, 50.0), (60.25, 100.0)], 200.0), "b": ([(0.5, 30.0)], 100.0), "c": ([], 100.0)}
FLHETBENCH = [
    {"isSuccess": True, "trace_start": 1000, "trace_end": 1200.0, "ready_time": [[1010, 1050], [1060.25, 1100]]},
    {"isSuccess": False},
    {"isSuccess": True, "trace_start": 0, "trace_end": 100, "ready_time": [[0.5, 30]]},
    {"isSuccess": True, "trace_start": 5, "trace_end": 105, "ready_time": []},
]
FEDSCALE = {
    name: {
        "duration": 9,
        "model": "x",
        "active": [a for a, _ in pairs],
        "inactive": [b for _, b in pairs],
        "finish_time": period,
    }
    for name, (pairs, period) in DAYS.items()
}


def held(traces, clients, seed):
    """Return what each client holds: its intervals and its period."""
    found = traces.dealt(clients, seed)
    offsets = found.offsets_N1
    return [
        (list(zip(found.starts_Z[a:b].tolist(), found.ends_Z[a:b].tolist(), strict=True)), period)
        for a, b, period in zip(offsets[:-1], offsets[1:], found.periods_N.tolist(), strict=True)
    ]


@pytest.mark.parametrize("form", ["traces.csv", "traces.parquet", "traces.json", "traces.pkl", "traces"])
def test_the_same_traces_in_all_forms_are_dealt_out_alike(tmp_path, form):
    path = tmp_path / form
    if path.suffix in (".csv", ".parquet"):
        write(path, TRACES)
    elif path.suffix == ".json":
        path.write_text(json.dumps(FLHETBENCH))
    else:
        path.write_bytes(pickle.dumps(FEDSCALE))
    found = read_recorded(world(traces=path)).traces
    three = held(found, 3, 7)
    assert sorted(three) == sorted(DAYS.values())
    assert held(found, 8, 7) == [three[client % 3] for client in range(8)]


@given(
    st.dictionaries(st.integers(0, 9), st.sets(st.floats(0, 1e6), min_size=2, max_size=9), min_size=1, max_size=4),
    st.sampled_from([".csv", ".parquet"]),
)
def test_traces_read_back(tmp_path_factory, edges, suffix):
    pairs = {c: list(zip(s[::2], s[1::2], strict=False)) for c, s in ((c, sorted(e)) for c, e in edges.items())}
    rows = [(client, *pair) for client, own in pairs.items() for pair in own]
    names = ("client", "available_from", "available_until")
    path = tmp_path_factory.mktemp("traces") / f"t{suffix}"
    write(path, {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)})
    found = read_recorded(world(traces=path)).traces
    if sorted(pairs) != list(range(len(pairs))):
        with pytest.raises(DataError, match="has no row for client"):
            found.dealt(max(pairs) + 1 if len(pairs) < max(pairs) + 1 else len(pairs) + 1, 0)
        return
    last = max(end for _, _, end in rows)
    assert held(found, len(pairs), 0) == [(pairs[client], last) for client in range(len(pairs))]


LINES = [
    "device, available_from,available_until ,trace_seconds",
    "a, 10,50,2_00",
    "b,.5,3e1,100",
    " a ,60.25,1e2,",
    "c,,,100",
]
WRITTEN = {
    "as Python writes": "\n".join(LINES),
    "Windows": "\ufeff" + "\r\n".join(LINES) + "\r\n",
    "quoted": "\n".join(",".join(f'"{cell}"' for cell in line.split(",")) for line in LINES),
    "old Mac": "\r".join(LINES),
}


@pytest.mark.parametrize("how", WRITTEN)
def test_the_same_rows_are_read_however_they_are_written(tmp_path, how):
    path = tmp_path / "t.csv"
    path.write_text(WRITTEN[how], encoding="utf-8", newline="")
    assert sorted(held(read_recorded(world(traces=path)).traces, 3, 7)) == sorted(DAYS.values())


@pytest.mark.parametrize("kind", [pa.dictionary(pa.int8(), pa.string()), pa.large_string(), pa.int32()])
def test_ids_of_any_type_are_in_the_order_of_their_first_rows(tmp_path, kind):
    names = ["7", "3", "7", "5"]
    ids = pa.array(names).cast(pa.int32()) if kind == pa.int32() else pa.array(names).cast(kind)
    if pa.types.is_dictionary(kind):  # entries in another order than rows, and one without any
        ids = pa.DictionaryArray.from_arrays(pa.array([3, 2, 3, 1], pa.int8()), pa.array(["9", "5", "3", "7"]))
    pq.write_table(pa.table({**TRACES, "device": ids}), tmp_path / "t.parquet")
    found = read_recorded(world(traces=tmp_path / "t.parquet")).traces
    assert list(found.owners.ids) == ["7", "3", "5"]
    assert sorted(held(found, 3, 7)) == sorted(DAYS.values())


def test_devices_of_a_file_replace_what_is_drawn_where_they_say_so(tmp_path):
    columns = {
        "client": [1, 0],
        "tokens_per_second": [7.0, None],
        "uplink_megabits": [2.0, 3.0],
        "latency_seconds": [0.0, 1.0],
    }
    for name in ("d.csv", "d.parquet"):
        config = world(write(tmp_path / name, columns)).devices
        found = read_recorded(WorldConfig(devices=config))
        drawn = Hardware.drawn(config, 0, 2)
        given = drawn.recorded(found.devices, config, 0)
        assert given.tokens_per_second_N.tolist() == [drawn.tokens_per_second_N[0], 7.0]
        assert given.uplink_bytes_N.tolist() == [3.0 * MEGABIT, 2.0 * MEGABIT]
        assert given.latency_seconds_N.tolist() == [1.0, 0.0]
        assert given.memory_bytes_N.tolist() == drawn.memory_bytes_N.tolist()
        assert dict(found.contents).keys() == {"devices"}


def test_capacities_of_fedscale_are_speeds_relative_to_their_median(tmp_path):
    path = tmp_path / "client_device_capacity"
    path.write_bytes(
        pickle.dumps({i: {"computation": c, "communication": 8000.0} for i, c in enumerate((50.0, 100.0, 200.0))})
    )
    config = world(path).devices
    hardware = Hardware.drawn(config, 0, 3).recorded(read_recorded(WorldConfig(devices=config)).devices, config, 0)
    assert sorted(hardware.tokens_per_second_N.tolist()) == [250.0, 500.0, 1000.0]
    assert hardware.downlink_bytes_N.tolist() == hardware.uplink_bytes_N.tolist() == [10**6] * 3


HEAD = "device,available_from,available_until"
DEVICE = '"isSuccess": true, "ready_time":'
WRONG = {
    "t.csv": {
        "": "t.csv is empty",
        f"{HEAD}\n": "t.csv has no rows",
        "a,b\n1,2\n": "t.csv: there is no column 'a'",
        "available_from,available_until\n1,2\n": "needs one column client or device",
        "device,available_from\na,2\n": "the column available_until is missing",
        f"{HEAD}\na,0,1\na,x,2\n": "t.csv: line 3: available_from is 'x', but must be seconds",
        f"{HEAD}\na,0,-1\n": "t.csv: line 2: available_until is '-1'",
        f"{HEAD}\na,5,\n": "t.csv: line 2: available_until is None, but must be given",
        f"{HEAD}\na,5,5\n": "t.csv: line 2: the interval of a from 5 to 5 seconds does not end after",
        f"{HEAD}\na,0,9\na,1,3\n": "t.csv: line 3: the interval of a from 1 to 3 seconds overlaps",
        f"{HEAD},trace_seconds\na,0,9,8\n": "line 2: the interval of a from 0 to 9 seconds ends after",
        f"{HEAD}\na,0,1\n\na,2,3\n": "t.csv: line 3: has 0 cells, but the header has 3 columns",
        f'{HEAD}\n"a"b,0,1\n': "t.csv is not a CSV file in UTF-8",
        "device,device,available_from\na,0,1\n": "t.csv: line 1: a column is named twice",
        f"{HEAD},trace_seconds\na,0,9,10\na,10,11,12\n": "line 2: trace_seconds is '10', but must be the same in all rows",
        f"{HEAD}\na,0\n": "t.csv: line 2: has 2 cells, but the header has 3 columns",
        f"{HEAD}\na,,\n": "no interval in which a device is in reach",
        "client,available_from,available_until\n1.5,0,1\n": "t.csv: line 2: client is '1.5', but must be a client's number",
    },
    "t.json": {
        "{": "t.json is not a JSON file",
        "{}": "must be a list of devices",
        "[1]": "device 1: must be a group of fields",
        '[{"isSuccess": true}]': "device 1: the field trace_start is missing",
        f'[{{{DEVICE} [], "trace_start": "a", "trace_end": 1}}]': "device 1: trace_start is 'a', but must be a number",
        f'[{{{DEVICE} [], "trace_start": 1, "trace_end": 1}}]': "device 1: trace_end is 1, but must be more than",
        f'[{{{DEVICE} [[1]], "trace_start": 0, "trace_end": 9}}]': "device 1: ready_time must be a list of",
        f'[{{{DEVICE} [[1, 3], [2, 4]], "trace_start": 0, "trace_end": 9}}]': "device 1: ready_time: the interval",
        "[]": "no interval",
    },
    "t.yaml": {"": r"its name must end in one of .csv, .parquet, .pkl, .pickle, .json, or in nothing"},
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_in_traces_is_one_sentence_with_its_place(tmp_path, name):
    for text, words in WRONG[name].items():
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError) as caught:
            read_recorded(world(traces=tmp_path / name))
        assert words in str(caught.value) and "\n" not in str(caught.value), (text, str(caught.value))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("client,gigabytes\n0,0\n", "line 2: gigabytes is '0', but must be a number above 0"),
        ("client,latency_seconds\n0,-1\n", "line 2: latency_seconds is '-1', but must be a number of at least 0"),
        ("client,tokens\n0,1\n", "there is no column 'tokens' (did you mean"),
        ("client,gigabytes\n0,1\n0,2\n", "line 3: client 0 was given before, line 2"),
        ("client,gigabytes\n,1\n", "line 2: client is None, but must be given in every row"),
        ("client,gigabytes\n0,inf\n", "line 2: gigabytes is 'inf'"),
    ],
)
def test_a_mistake_in_devices_is_one_sentence_with_its_place(tmp_path, text, words):
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        read_recorded(world(tmp_path / "d.csv"))
    assert words in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*gone\.csv, that world\.devices names: No such file"):
        read_recorded(world(tmp_path / "gone.csv"))


# -- pickles ---------------------------------------------------------------------------------------------------------------

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=6,
)


@settings(max_examples=30)
@given(PLAIN, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_values_read_back_from_pickles_of_every_protocol(tmp_path_factory, value, protocol):
    path = tmp_path_factory.getbasetemp() / "plain.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    found = read_plain_pickle(path)
    assert found == value and repr(found) == repr(value)


class Harmless:
    """An object; to make one is all that its pickle asks for."""


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value",
    [datetime.date(2020, 1, 1), np.arange(3), {"a": Harmless()}, [len], {1, 2}, (1, 2), b"bytes", np.float64(1.0)],
    ids=["date", "array", "object", "function", "set", "tuple", "bytes", "NumPy float"],
)
def test_all_else_in_a_pickle_is_refused(tmp_path, value, protocol):
    path = tmp_path / "other.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    with pytest.raises(
        DataError, match=r"byte [\d,]+: a pickle may hold dict, list, str, int, float, bool and None alone, but"
    ):
        read_plain_pickle(path)


@given(PLAIN, st.data())
def test_a_damaged_pickle_is_a_sentence(tmp_path_factory, value, data):
    whole = pickle.dumps(value)
    at = data.draw(st.integers(0, len(whole) - 1))
    torn = whole[:at] + (bytes([data.draw(st.integers(0, 255))]) + whole[at + 1 :] if data.draw(st.booleans()) else b"")
    path = tmp_path_factory.getbasetemp() / "torn.pkl"
    path.write_bytes(torn)
    try:
        read_plain_pickle(path)
    except DataError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "must map ids to devices"),
        ({1: 2}, "device 1: must be a group of fields"),
        ({1: {"active": [1], "inactive": [2, 3], "finish_time": 9}}, "device 1: active has 1 entries, inactive has 2"),
        ({1: {"active": ["x"], "inactive": [2], "finish_time": 9}}, "device 1: active must be a list of seconds"),
        (
            {1: {"active": [1], "inactive": [2], "finish_time": 0}},
            "device 1: finish_time is 0, but must be a number above 0",
        ),
        ({1: {"active": [1], "inactive": [2]}}, "device 1: the field finish_time is missing"),
        (
            {1: {"active": [5], "inactive": [2], "finish_time": 9}},
            "device 1: active: the interval of 1 from 5 to 2 seconds",
        ),
    ],
)
def test_a_mistake_in_fedscale_s_traces_is_one_sentence(tmp_path, value, words):
    path = tmp_path / "client_behave_trace"
    path.write_bytes(pickle.dumps(value))
    with pytest.raises(DataError) as caught:
        read_recorded(world(traces=path))
    assert words in str(caught.value)
