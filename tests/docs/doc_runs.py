"""Runs the blocks of a page, in a folder that looks like the repository's and keeps what they write out of it."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from doc_blocks import SMALL, Block
from support import ROOT

from fedsim import cli
from fedsim.core import plugins

_SHOWN = ("configs", "examples", "tests")
"""Folders that commands name."""
_WIDTH = "100"


class PageRun:
    """A page under way: a folder, the names of its Python blocks, and what the last block printed."""

    def __init__(self, folder: Path, monkeypatch) -> None:
        self._names = {"__name__": "__main__"}
        self._patch = monkeypatch
        self.printed = ""
        monkeypatch.chdir(folder)
        monkeypatch.setenv("COLUMNS", _WIDTH)
        for name in _SHOWN:
            Path(name).symlink_to(ROOT / name)

    def close(self) -> None:
        """Forget the plug-ins that its commands have loaded: they would be part of what later tests run."""
        for plugin in plugins.loaded():
            plugins.unload(plugin.file)

    def do(self, block: Block) -> None:
        """Do what the comment above a block says."""
        if block.deed == "file":
            Path(block.about).parent.mkdir(parents=True, exist_ok=True)
            Path(block.about).write_text(block.text)
        elif block.deed in ("run", "run small"):
            small = [*SMALL, *shlex.split(block.about)] if block.deed == "run small" else []
            with contextlib.redirect_stdout(io.StringIO()) as out:
                self._python(block) if block.kind == "python" else self._shell(block, small)
            self.printed = out.getvalue()

    def _python(self, block: Block) -> None:
        """Run a block as a prompt would: the value of its last line is shown."""
        tree = ast.parse(block.text)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, str(block), "exec"), self._names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), str(block), "eval"), self._names)
            print("" if value is None else repr(value))

    def _shell(self, block: Block, small: list[str]) -> None:
        for line in block.lines:
            words = shlex.split(line)
            if words[0] == "fedsim" and words[-2] == ">":
                with Path(words[-1]).open("w") as file, contextlib.redirect_stdout(file):
                    self._fedsim(words[:-2])
            elif words[0] == "fedsim":
                extra = small if words[1] == "run" else ["--dry-run"] if small and words[1] == "compare" else []
                self._fedsim([*words, *extra])
            else:
                environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
                done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=200, env=environment)
                assert done.returncode == 0, f"{block}: {line}\n{done.stderr}"
                print(done.stdout, end="")

    def _fedsim(self, words: list[str]) -> None:
        """Run a command in this process: a new one would take seconds to begin."""
        self._patch.setattr(sys, "argv", words)
        with contextlib.redirect_stderr(io.StringIO()) as said:
            try:
                cli.main()
            except SystemExit as ended:
                assert not ended.code, f"{shlex.join(words)}\n{said.getvalue()}"


def shape(text: str) -> list[str]:
    """Return the lines of an output without what differs from run to run and from machine to machine: numbers and widths."""
    lines = (re.sub(r"[\d.,:e+-]*\d[\d.,]*(e[+-]?\d+)?", "#", line) for line in text.splitlines())
    return [" ".join(re.sub(r"[─━┃│|]+", "", line).split()) for line in lines if line.strip()]
