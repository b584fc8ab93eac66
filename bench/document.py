"""Where measured numbers are written down."""

from __future__ import annotations

import re
from pathlib import Path

DOCUMENT = Path("docs/performance.md")


def write_part(name: str, text: str) -> None:
    """Replace what stands between the marks of one benchmark."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    document = DOCUMENT.read_text()
    fresh = re.sub(f"{begin}.*{end}", lambda _: f"{begin}{text}{end}", document, flags=re.DOTALL)
    DOCUMENT.write_text(fresh)
