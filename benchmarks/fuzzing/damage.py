"""Damaged bytes, drawn from one random generator.

Every function draws from the generator it is given and from nothing else, so a case is found again by its number.
"""

from __future__ import annotations

from random import Random

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
"""The billion laughs: a list of 9^11 entries in 12 lines."""

FRAGMENTS: tuple[bytes, ...] = tuple(
    fragment.encode() if isinstance(fragment, str) else fragment
    for fragment in (
        LAUGHS,
        "name: &loop [*loop]\n",
        "seed: &loop {a: *loop}\n",
        "model: &m {path: embedded}\nclient: *m\n",
        "x: &x {rounds: 3}\n<<: *x\n",
        "<<: [1, 2]\n",
        "<<: {<<: {rounds: 1}}\n",
        "output: !!python/object/apply:os.system ['true']\n",
        "name: !!python/name:os.system\n",
        "seed: !!binary aGVsbG8=\n",
        "rounds: !!set {a, b}\n",
        "rounds: !!omap [a: 1]\n",
        "rounds: !!int x\n",
        "rounds: !!float x\n",
        "rounds: !!timestamp x\n",
        "name: !!bool maybe\n",
        "? [a, b]\n: c\n",
        "? {a: b}\n: c\n",
        "---\nrounds: 1\n",
        "...\n",
        "%YAML 9.9\n---\n",
        "seed: " + "9" * 5000 + "\n",
        "seed: 0x" + "f" * 5000 + "\n",
        "seed: 1_000\n",
        "seed: 0b2\n",
        "seed: 1:99:99\n",
        "seed: 2001-99-99\n",
        "client: {optimizer: {lr: 1e999}}\n",
        "client: {optimizer: {lr: -.inf}}\n",
        'name: "\\ud800"\n',
        'name: "\\x00"\n',
        'name: "\\u2028"\n',
        "k" * 20_000 + ": 1\n",
        "name: " + "v" * 20_000 + "\n",
        "[" * 2000,
        "{a: " * 2000,
        "- " * 2000,
        "a: \n" + "".join(" " * i + "a:\n" for i in range(1, 400)),
        "\t",
        "\n\t",
        "\ufeff",
        "\u2028",
        "\x85",
        "\x00",
        b"\xff\xfe",
        b"\xc3\x28",
        b"\xed\xa0\x80",
        "\r",
        "\r\n",
        "\x1b[31m",
        "'",
        '"',
        "`",
        "@",
        "%",
        "|\n",
        ">\n",
        "# ",
        ": ",
        "- ",
        ",",
        "{",
        "}",
        "]",
        "null",
        "NaN",
        "-1",
        "1e400",
        "9" * 30,
    )
)


def damage(data: bytes, rng: Random) -> bytes:
    """Return bytes with one to four faults."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(_FAULTS)(data, rng)
    return data[: 2**22]


def _flip(data: bytes, rng: Random) -> bytes:
    if not data:
        return data
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def _span(data: bytes, rng: Random) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 2, 8, 64, len(data))))


def _cut(data: bytes, rng: Random) -> bytes:
    start, stop = _span(data, rng)
    return data[:start] + data[stop:]


def _insert(data: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    if rng.random() < 0.7:  # at the start of a line, where it is most likely to be understood
        at = data.rfind(b"\n", 0, at) + 1
    return data[:at] + rng.choice(FRAGMENTS) + data[at:]


def _noise(data: bytes, rng: Random) -> bytes:
    start, stop = _span(data, rng)
    return data[:start] + rng.randbytes(min(stop - start, 64)) + data[stop:]


def _repeat(data: bytes, rng: Random) -> bytes:
    start, stop = _span(data, rng)
    piece = data[start : min(stop, start + 200)]
    return data[:start] + piece * rng.choice((2, 3, 1000)) + data[stop:]


def _lines(data: bytes, rng: Random) -> bytes:
    lines = data.split(b"\n")
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(5):
        case 0:
            lines.insert(other, lines[one])
        case 1:
            lines[one], lines[other] = lines[other], lines[one]
        case 2:
            del lines[one]
        case 3:
            lines[one] = rng.choice((b"\t", b" ", b"  ", b"    ")) + lines[one]
        case _:
            lines[one] = lines[one].lstrip()
    return b"\n".join(lines)


def _encoded(data: bytes, rng: Random) -> bytes:
    text = data.decode("utf-8", errors="replace")
    return text.encode(rng.choice(("utf-16", "utf-32", "utf-8-sig", "latin-1")), errors="replace")


_FAULTS = (_flip, _flip, _cut, _insert, _insert, _insert, _noise, _repeat, _lines, _lines, _encoded)
