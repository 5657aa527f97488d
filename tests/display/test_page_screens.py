"""Pages as a browser shows them: on a phone, on a desk, in the dark; compared with a small picture that is stored."""

from __future__ import annotations

import html
import io
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from page_html import made_run, made_study, summary_of

import fedsim
from fedsim.display.page.run_page import run_page
from fedsim.display.page.study_page import study_page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason=f"no browser to look with: none of {', '.join(BROWSERS)} is installed"
)
REFERENCE = Path(__file__).with_name("page_reference.png")
"""The top of a page in little, grey; FEDSIM_REMAKE=1 makes it anew."""
LITTLE = (80, 60)
TOLERANCE = 12
"""Mean difference of grey values, of 255: other fonts move lines a little, another layout moves everything."""
SMALLEST_TEXT = 9
"""In pixels of CSS."""
MEASURE = """<script>
addEventListener("load", () => {
  const sizes = [...document.querySelectorAll(".picture svg")].map((svg) => {
    const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    return Math.min(...[...svg.querySelectorAll("text")].map((text) => scale * parseFloat(getComputedStyle(text).fontSize)));
  });
  const root = document.documentElement;
  parent.postMessage({width: innerWidth, needed: root.scrollWidth, text: Math.min(...sizes), figures: sizes.length}, "*");
});
</script></body>"""
FRAME = """<!DOCTYPE html><iframe src="{name}" style="width: {width}px; height: 900px; border: 0"></iframe>
<script>
addEventListener("message", (event) => document.documentElement.setAttribute("data-found", JSON.stringify(event.data)));
</script>"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, str]:
    made = made_study()
    summary = summary_of(made)
    run = fedsim.load_run(made_run(tmp_path_factory.mktemp("run") / "run", rounds=20))
    return {"run": run_page(run), "study": study_page(summary, summary.cells, made[0])}


def browse(folder: Path, file: Path, *options: str) -> str:
    """Return the document after its scripts."""
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={folder / 'profile'}",
    ]
    command += ["--virtual-time-budget=2000", *options, file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


@pytest.mark.parametrize("name", ["run", "study"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_page_fits_and_its_text_can_be_read(pages, tmp_path, name, width):
    (tmp_path / "page.html").write_text(pages[name].replace("</body>", MEASURE))
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(name="page.html", width=width))
    document = browse(tmp_path, frame, "--dump-dom", "--window-size=1400,1000")
    found = json.loads(html.unescape(re.search(r'data-found="([^"]*)"', document)[1]))
    assert found["width"] == width == found["needed"] and found["figures"] >= 6
    assert found["text"] >= SMALLEST_TEXT


USED = """<script>
addEventListener("load", () => {
  const svg = document.querySelector("svg[data-hover]"), box = svg.getBoundingClientRect();
  svg.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + 0.99 * box.width, clientY: box.top + 9}));
  const tip = document.querySelector(".tip").innerText.split("\\n");
  const table = document.querySelector("#costs table"), heads = [...table.tHead.rows[0].cells].map((head) => head.innerText);
  const at = heads.indexOf("bytes up"), sort = () => table.tHead.rows[0].cells[at].querySelector("button").click();
  const read = () => [...table.tBodies[0].rows].map((row) => row.cells[at].innerText);
  const [before] = [read(), sort()], [up] = [read(), sort()], down = read();
  document.documentElement.setAttribute("data-found", JSON.stringify({tip, before, up, down}));
});
</script></body>"""


def test_a_pointer_reads_a_curve_and_a_click_sorts_a_table(pages, tmp_path):
    (tmp_path / "page.html").write_text(pages["study"].replace("</body>", USED))
    document = browse(tmp_path, tmp_path / "page.html", "--dump-dom", "--window-size=1280,960")
    found = json.loads(html.unescape(re.search(r'data-found="([^"]*)"', document)[1]))
    assert found["tip"][0] == "round: 12" and [line.split(":")[0] for line in found["tip"][1:]] == [
        "arm-0",
        "arm-1",
        "arm-2",
    ]
    amounts = ["1 MB", "2 MB", "3 MB"]
    assert found["before"] == amounts * 2
    assert found["up"] == sorted(amounts * 2) and found["down"] == sorted(amounts * 2, reverse=True)


def grey(pages, folder: Path, *options: str) -> np.ndarray:
    """Return the top of the study's page in little, as grey values."""
    from PIL import Image

    page = folder / "page.html"
    page.write_text(pages["study"])
    browse(folder, page, f"--screenshot={folder / 'page.png'}", "--window-size=1280,960", *options)
    image = Image.open(io.BytesIO((folder / "page.png").read_bytes()))
    return np.asarray(image.convert("L").resize(LITTLE, Image.Resampling.BOX), dtype=float)


def test_a_page_looks_as_it_did(pages, tmp_path):
    from PIL import Image

    found = grey(pages, tmp_path)
    if os.environ.get("FEDSIM_REMAKE"):
        Image.fromarray(found.astype(np.uint8)).save(REFERENCE)
    stored = np.asarray(Image.open(REFERENCE), dtype=float)
    assert np.abs(found - stored).mean() < TOLERANCE
    assert np.abs(np.roll(found, 10, axis=0) - stored).mean() > np.abs(found - stored).mean()


def test_a_page_is_dark_where_the_reader_wants_it(pages, tmp_path):
    (tmp_path / "dark").mkdir()
    dark = grey(pages, tmp_path / "dark", "--blink-settings=preferredColorScheme=0")
    assert grey(pages, tmp_path).mean() > 200 > 60 > dark.mean()
