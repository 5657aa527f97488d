"""The benchmark of codecs measures each of them, and a copy of the vector beside it."""

from benchmarks.compression import measure
from fedsim.core.compression.codec import CODECS


def test_every_codec_is_measured_beside_a_copy():
    rows = measure(2000, 1)
    assert {row["codec"].split()[0] for row in rows} == set(CODECS)
    for row in rows:
        assert 0.0 < row["bytes_per_entry"] <= 4.01 and row["write_ns"] >= 0.0
