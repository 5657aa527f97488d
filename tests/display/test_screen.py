"""A run from Python in a process whose output lacks characters, which then has nobody to set that output up."""

import io

import pytest

from fedsim.display.progress import Progress
from fedsim.display.report import final_table
from fedsim.display.screen import RunConsole, Screen


@pytest.mark.parametrize("console", [Screen, RunConsole])
@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", r"/tmp/[x] \u8bc4\udce9"), ("latin-1", r"/tmp/[x] \u8bc4\udce9"), ("utf-8", r"/tmp/[x] 评\udce9")],
)
def test_what_an_encoding_lacks_is_escaped_and_brackets_are_shown(console, encoding, shown):
    folder = "/tmp/[x] 评\udce9"  # the last one stands for a byte of a path that is no UTF-8
    stream = io.BytesIO()
    screen = console(file=io.TextIOWrapper(stream, encoding=encoding, write_through=True), width=120)
    with Progress(2, "accuracy", screen) as progress:
        progress.note(f"note {folder}")
        progress.start_phase(f"phase {folder}")
    screen.print(f"printed {folder}")
    screen.print(final_table({"folder": folder, "rounds": 2}))
    text = stream.getvalue().decode(encoding)
    assert [f"{word} {shown}" in text for word in ("note", "printed")] == [True, True]
    assert f"phase  phase {shown}" in text and shown in text.partition("folder")[2]
