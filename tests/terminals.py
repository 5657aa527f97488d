"""A real pseudo-terminal of a chosen width, for what is drawn on it."""

import os
import pty
import re
import subprocess
import sys
import termios

from support import ROOT


def on_a_terminal(columns, *arguments, term="xterm-256color"):
    """Return the exit status and the output of ``python ARGUMENTS`` on a terminal of so many columns."""
    host, own = pty.openpty()
    termios.tcsetwinsize(own, (50, columns))
    environment = {**os.environ, "TERM": term}
    environment.pop("COLUMNS", None)
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, env=environment, stdin=own, stdout=own, stderr=own
    )
    os.close(own)
    output = b""
    while True:
        try:
            part = os.read(host, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        output += part
    os.close(host)
    return process.wait(), output.decode()


def plain_lines(output):
    """Return all lines that were drawn, those drawn over too."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output).replace("\r", "\n").split("\n")
