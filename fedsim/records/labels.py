"""Who holds what: the examples of each client and class, in ``labels.parquet``.

Shape suffixes: N clients, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedsim.core.errors import CheckpointError
from fedsim.records.events import replaced

_CLASSES = b"fedsim.classes"


def write_labels(path: Path, counts_NC: np.ndarray, class_names: Sequence[str]) -> None:
    """Write the table atomically: ``client``, ``label`` (number of the class), ``name``, ``examples``; no zero counts."""
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    clients, labels = np.nonzero(counts_NC)
    names = pa.array([class_names[label] for label in labels.tolist()], pa.string()).dictionary_encode()
    columns = {
        "client": pa.array(clients, pa.int32()),
        "label": pa.array(labels, pa.int32()),
        "name": names,
        "examples": pa.array(np.asarray(counts_NC)[clients, labels], pa.int32()),
    }
    about = {_CLASSES: json.dumps({"clients": len(counts_NC), "names": list(class_names)}).encode()}
    with replaced(path) as file:
        pq.write_table(pa.table(columns).replace_schema_metadata(about), file)


def read_labels(path: Path) -> tuple[np.ndarray, tuple[str, ...]] | None:
    """Return the counts [N, C] and the names of the classes; None if they were not recorded.

    Raises
    ------
    CheckpointError
        If the file cannot be read.
    """
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        return None
    try:
        table = pq.ParquetFile(path).read()
        about = json.loads(table.schema.metadata[_CLASSES])
        counts_NC = np.zeros((about["clients"], len(about["names"])), dtype=np.int64)
        counts_NC[table["client"].to_numpy(), table["label"].to_numpy()] = table["examples"].to_numpy()
    except (OSError, pa.ArrowException, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as a table of labels ({error})") from error
    return counts_NC, tuple(about["names"])
