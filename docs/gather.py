"""Gathers the pages of the site in one folder, build/docs: those of docs/, and README, CHANGELOG and others beside it.

    python docs/gather.py && mkdocs build          (make docs)

Links between pages are changed from the repository's paths to the site's, so they work in both places.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "build" / "docs"

OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "analysis/README.md": "analysis.md",
    **{
        page.relative_to(ROOT).as_posix(): page.relative_to(ROOT).as_posix().replace("README.md", "index.md")
        for page in ROOT.joinpath("cluster").rglob("README.md")
    },
}
"""Path in the repository -> path on the site, of pages that are not in docs/."""

_LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
_PICTURE = re.compile(
    r'<picture>\s*<source media="\(prefers-color-scheme: dark\)" srcset="(?P<dark>[^"]+)">\s*'
    r'<img src="(?P<light>[^"]+)" alt="(?P<text>[^"]+)">\s*</picture>'
)
"""The repository follows the system's colours; the site has a switch of its own."""


def gather(site: Path = SITE) -> None:
    """Write all pages and images of the site into an empty folder."""
    shutil.rmtree(site, ignore_errors=True)
    shutil.copytree(ROOT / "docs", site, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    sources = {f"docs/{page.name}": page.name for page in (ROOT / "docs").glob("*.md")} | OUTSIDE
    for source, page in sources.items():
        (site / page).parent.mkdir(parents=True, exist_ok=True)
        (site / page).write_text(relinked(ROOT.joinpath(source).read_text(encoding="utf-8"), source), encoding="utf-8")


def relinked(markdown: str, source: str) -> str:
    """The page `source` (a path in the repository) with links as the site has them.

    A link to a file that the site lacks, such as a test, becomes its text. A link to nothing stays, and fails the
    build."""

    def link(match: re.Match[str]) -> str:
        found = _on_site(match["target"], source)
        return match["text"] if found is None else f"[{match['text']}]({found})"

    def picture(match: re.Match[str]) -> str:
        light, dark = f"{match['light']}#only-light", f"{match['dark']}#only-dark"
        return f"![{match['text']}]({light})\n![{match['text']}]({dark})"

    return _LINK.sub(link, _PICTURE.sub(picture, markdown))


def _on_site(target: str, source: str) -> str | None:
    """The target as a page of the site names it; None for a file of the repository that is not on the site."""
    path, hash_, anchor = target.partition("#")
    if "://" in target or not path:
        return target
    there = PurePosixPath(os.path.normpath(PurePosixPath(source).parent / path)).as_posix()
    site = _site_path(there)
    if site is None:
        return None if ROOT.joinpath(there).exists() else target
    return os.path.relpath(site, PurePosixPath(_site_path(source) or source).parent) + hash_ + anchor


def _site_path(path: str) -> str | None:
    return OUTSIDE.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)


if __name__ == "__main__":
    gather(Path(sys.argv[1]) if len(sys.argv) > 1 else SITE)
