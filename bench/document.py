"""Tables of the benchmarks in docs/performance.md, each between two marks."""

from __future__ import annotations

import re
from pathlib import Path

DOCUMENT = Path("docs/performance.md")


def write_table(name: str, text: str, *, document: Path = DOCUMENT) -> None:
    """Replace what stands between the marks of this name."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    fresh = re.sub(f"{begin}.*{end}", lambda _: f"{begin}{text}{end}", document.read_text(), flags=re.DOTALL)
    document.write_text(fresh)
