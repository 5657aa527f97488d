"""Links of a page that lead out of docs/: to the repository's files, which the site shows as pages of its own."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)(\))")
FENCE = re.compile(r"^( *)(```+).*?^\1\2 *$", re.M | re.S)
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages of the site that stand elsewhere in the repository, or instead of its front page."""
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".ipynb": "json", ".sbatch": "bash"}


def outside(text: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of each part of a page that is no block of code."""
    at = 0
    for block in FENCE.finditer(text):
        yield at, block.start()
        at = block.end()
    yield at, len(text)


def links(text: str) -> list[str]:
    """Return the targets of a page's links, blocks of code left out."""
    return [found[2] for start, end in outside(text) for found in LINK.finditer(text[start:end])]


def external(pages: dict[str, str]) -> list[str]:
    """Return the addresses outside that pages lead to; nothing fetches them."""
    return sorted({link for text in pages.values() for link in links(text) if re.match(r"[a-z]+:", link)})


def target(link: str, page: str) -> str | None:
    """Return the repository's path that a link of a page leads to; None for an address or a heading of the page itself.

    Parameters
    ----------
    page
        Path of the page in the repository, such as ``docs/guide.md``.
    """
    path = link.partition("#")[0]
    if not path or re.match(r"[a-z]+:", path):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), path))


def place(path: str) -> str:
    """Return where the site has a path of the repository: its page, relative to the site's root."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"source/{path}.md"


def rewritten(text: str, page: str) -> str:
    """Return a page with its links as the site has them; ``page`` is its path in the repository."""
    here = posixpath.dirname(place(page))

    def changed(found: re.Match[str]) -> str:
        path = target(found[2], page)
        if path is None:
            return found[0]
        anchor = found[2].partition("#")[2]
        return f"{found[1]}{posixpath.relpath(place(path), here or '.')}{'#' + anchor if anchor else ''}{found[3]}"

    parts, at = [], 0
    for start, end in outside(text):
        parts += [text[at:start], LINK.sub(changed, text[start:end])]
        at = end
    return "".join(parts)


def shown_files(pages: dict[str, str]) -> set[str]:
    """Return the repository's files and folders outside docs/ that pages lead to, and the files in such folders.

    Parameters
    ----------
    pages
        Text of each page, by its path in the repository.
    """
    found = {target(link, page) for page, text in pages.items() for link in links(text)}
    paths = {path for path in found if path and not path.startswith(("docs/", "..")) and path not in PAGES}
    for folder in [path for path in paths if (ROOT / path).is_dir()]:
        paths |= {file.relative_to(ROOT).as_posix() for file in files_of(ROOT / folder)}
    return paths


def files_of(folder: Path) -> list[Path]:
    """Return the text files of a folder, those of its folders left out."""
    return sorted(path for path in folder.iterdir() if path.suffix in LANGUAGES and path.is_file())


def source_page(path: str) -> str:
    """Return the page that shows a file of the repository, or lists a folder's."""
    whole = ROOT / path
    if whole.is_dir():
        rows = [f"* [{file.name}]({posixpath.basename(path)}/{file.name}.md)" for file in files_of(whole)]
        return f"# {path}/\n\n" + "\n".join(rows) + "\n"
    text = whole.read_text(encoding="utf-8")
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"# {path}\n\n{fence}{LANGUAGES.get(whole.suffix, 'text')}\n{text.rstrip()}\n{fence}\n"
