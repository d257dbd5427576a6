"""Writes the generated pages of docs/: commands, settings, methods, round log: `python -m fibec_ray.cli.reference`."""

from __future__ import annotations

import sys
from pathlib import Path

from fibec_ray.cli import method_page
from fibec_ray.cli.command_page import commands_page
from fibec_ray.cli.settings_page import settings_page
from fibec_ray.roundlog.page import round_log_page


def pages() -> dict[str, str]:
    """File name -> text of every generated page."""
    return {
        "cli.md": commands_page(),
        "settings.md": settings_page(),
        "methods.md": method_page.page(),
        "round-log.md": round_log_page(),
    }


def main(docs: Path) -> None:
    """Write all generated pages into a folder."""
    for name, text in pages().items():
        (docs / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
