"""Layer scores against those of the published code."""

import numpy as np

from clients.analysis.scoring import layer_scores
from server.selection import combine_scores, rank

DELICATE = ("duplicates", "zero_row", "opposite")
"""Batches with an eigenvalue of 0 up to rounding: 1/(0 + 1e-5) amplifies the float32 rounding of the published code."""


def test_scores_and_ranking(load_golden):
    arrays, description = load_golden("02_layer_score")
    for case, about in description["cases"].items():
        hidden = arrays[f"{case}.hidden"].astype(about["cast_to"])
        scores = layer_scores(list(hidden), score_last=False)
        delicate = about["kind"] in DELICATE
        tolerance = 3e-2 if delicate and about["cast_to"] == "float32" else 1e-4
        np.testing.assert_allclose(scores, arrays[f"{case}.score"], rtol=tolerance, err_msg=case)
        if not delicate and about["batch"] > 1:
            np.testing.assert_array_equal(rank(scores), arrays[f"{case}.rank"], err_msg=case)


def test_consensus_of_clients(load_golden):
    arrays, _ = load_golden("02_layer_score")
    clients = range(len(arrays["consensus.n_samples"]))
    scores = [layer_scores(list(arrays[f"consensus.hidden{i}"]), score_last=False) for i in clients]
    for i in clients:
        np.testing.assert_allclose(scores[i], arrays[f"consensus.client_score{i}"], rtol=1e-4)
    combined = combine_scores(scores, arrays["consensus.n_samples"])
    np.testing.assert_allclose(combined, arrays["consensus.score"], rtol=1e-4)
    assert rank(combined).tolist() == arrays["consensus.rank"].tolist()
