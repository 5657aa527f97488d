"""How each client fares, from ``personal.parquet``, in the form that pages and studies draw."""

from __future__ import annotations

from pathlib import Path

from fedsim.core.errors import CheckpointError

_NAMES = {"examples": "examples", "before": "start_metric", "after": "metric", "rounds": "rounds"}
"""Names of the figures, and their columns."""


def read_client_results(path: Path) -> dict[int, dict[str, float]]:
    """Return by client: ``examples`` that it holds out, its metric ``before`` and ``after``, and ``rounds`` trained in.

    Figures that were not measured are NaN; without a file there are no clients.

    Raises
    ------
    CheckpointError
        If the file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        return {}
    try:
        table = pq.ParquetFile(path).read(columns=["client", *_NAMES.values()])
        columns = {name: table[column].to_numpy().astype(float) for name, column in _NAMES.items()}
        clients = table["client"].to_pylist()
    except (OSError, KeyError, pa.ArrowException) as error:
        raise CheckpointError(f"{path} cannot be read as the results of clients ({error})") from error
    return {
        client: {name: float(values[row]) for name, values in columns.items()} for row, client in enumerate(clients)
    }
