"""Has the documents of the package link to nothing that is not in it: `python links.py DIRECTORY`.
Standard: a link whose file is missing becomes its text; commands and whatever else stands between ``` is left alone.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_FENCED = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[([^\[\]]*)\]\(([^)\s]+)\)")


def main(directory: Path) -> None:
    """Rewrites all Markdown files below the directory."""
    for document in sorted(directory.rglob("*.md")):
        document.write_text(with_live_links(document.read_text(), document.parent))


def with_live_links(text: str, beside: Path) -> str:
    """The text of a document that lies `beside` others, where each link to a file leads to one."""

    def link(found: re.Match[str]) -> str:
        path = found[2].partition("#")[0]
        return found[0] if not path or "://" in path or (beside / path).exists() else found[1]

    parts = _FENCED.split(text)
    return "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in parts)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
