"""``python -m tests.byte_guard``: compare the bytes of all runs with the table; ``--remake`` puts them into it."""

from __future__ import annotations

import argparse
import re
import sys

from . import table
from .cases import CASES
from .machine import run_all


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.byte_guard", description=__doc__)
    parser.add_argument(
        "--remake", action="store_true", help="write the table anew; say in the commit why bytes changed"
    )
    remake = parser.parse_args().remake
    reason = table.why_not_comparable()
    if reason is not None and not remake:
        print(reason)
        return 2
    before, now = table.here(), run_all()
    if failed := {name: text for name, text in now.items() if not re.fullmatch(r"[0-9a-f]{64}", text)}:
        for name, text in failed.items():
            print(f"failed     {name}: {text}")
        print("nothing is written")
        return 1
    changed = _report(before, now)
    if remake:
        table.write(now)
        print(f"wrote {table.PATH}")
        return 0
    return int(changed)


def _report(before: dict[str, str], now: dict[str, str]) -> bool:
    """Print each case whose digest is not that of the table, and how many are; return whether there is one."""
    names = [name for name in CASES if before.get(name) != now[name]]
    gone = [name for name in before if name not in now]
    for name in names:
        print(f"{'changed' if name in before else 'new':10} {name}: {before.get(name, '-')[:12]} -> {now[name][:12]}")
    for name in gone:
        print(f"{'gone':10} {name}")
    print(f"{len(now) - len(names)} of {len(now)} runs end with the bytes on record")
    return bool(names or gone)


if __name__ == "__main__":
    sys.exit(main())
