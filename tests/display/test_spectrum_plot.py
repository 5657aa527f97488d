"""The picture of the clients' spectra."""

import numpy as np
import pytest
from test_plots import BLUE, GREY, picture, share_of

from fedsim.display.plots import write_plots
from fedsim.display.spectrum_plot import plot_spectrum
from fedsim.records.run_folder import RunFolder


def spectra(count=5, width=0.03, thresholds=(0.0,)):
    rng = np.random.default_rng(0)
    return [
        {
            "values_RK": np.sort(rng.normal(0, width, (1, 30))).tolist(),
            "weights_RK": [[1 / 30] * 30],
            "threshold": thresholds[number % len(thresholds)],
            "weight": number + 1,
        }
        for number in range(count)
    ]


def choice(share, layers, rule="density"):
    return {"share": share, "share_rule": rule, "layers": list(range(layers)), "num_layers": 12}


@pytest.mark.parametrize("width", [1e-6, 0.03, 5.0, 400.0])
def test_spectra_of_any_width(tmp_path, width):
    pixels = picture(plot_spectrum(spectra(width=width), choice(0.5, 6), tmp_path / "s.png"))
    assert share_of(pixels, BLUE) > 0.02 and share_of(pixels, GREY) > 0.02
    assert [path.name for path in tmp_path.iterdir()] == ["s.png"]


def test_what_is_kept_grows_as_the_thresholds_fall(tmp_path):
    kept = [
        share_of(picture(plot_spectrum(spectra(thresholds=(at,)), choice(0.5, 6), tmp_path / "s.png")), BLUE)
        for at in (0.05, 0.0, -0.05)
    ]
    assert kept == sorted(kept) and kept[0] < kept[2]


def test_without_a_gap_everything_is_kept(tmp_path):
    everything = picture(plot_spectrum(spectra(thresholds=(None,)), choice(1.0, 12, "eigengap"), tmp_path / "a.png"))
    some = picture(plot_spectrum(spectra(thresholds=(None, 0.01)), choice(0.7, 9, "eigengap"), tmp_path / "b.png"))
    # Nothing grey but the patch in the legend, and lines of one pixel where two areas meet.
    assert share_of(everything, GREY) < 0.005 < share_of(some, GREY)


def test_the_picture_is_drawn_from_the_records(tmp_path):
    with RunFolder.create(tmp_path / "run") as folder:
        assert write_plots(folder) == []
        for spectrum in spectra():
            folder.event("spectrum", round=0, **spectrum)
        folder.event("layers", scores=None, **choice(0.5, 6))
        assert write_plots(folder) == [folder.plots / "spectrum.png"]
