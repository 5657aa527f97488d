"""What mkdocs does beside showing docs/: pages of the repository's files, links to them, and tables made from the code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import generated
import sources
from mkdocs.structure.files import File, InclusionLevel

_external: list[str] = []
_ELSEWHERE = {page: path for path, page in sources.PAGES.items() if page != "index.md"}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not in docs/: CONTRIBUTING.md, CHANGELOG.md, and each file that a page leads to."""
    pages = {
        f"docs/{file.src_uri}": file.content_string
        for file in files.documentation_pages(inclusion=InclusionLevel.is_included)
    }
    for page, path in _ELSEWHERE.items():
        pages[path] = (sources.ROOT / path).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=pages[path]))
    _external[:] = sources.external(pages)
    for path in sorted(sources.shown_files(pages)):
        text = sources.source_page(path)
        files.append(File.generated(config, sources.place(path), content=text, inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(text: str, page: Any, config: Any, files: Any) -> str:
    """Put in what is made from the code, and lead links to where the site has their files."""
    uri = page.file.src_uri
    if uri.startswith("source/"):
        page.meta["search"] = {"exclude": True}
        return text
    whole = sources.rewritten(generated.filled(text), _ELSEWHERE.get(uri, f"docs/{uri}"))
    return whole.replace(" ± ", "\u00a0±\u00a0")  # on a phone each would be three lines


def on_post_build(config: Any) -> None:
    """List the addresses that pages lead to, so that somebody can look whether they are still there."""
    Path(config.site_dir, "external-links.txt").write_text("".join(f"{link}\n" for link in _external))
