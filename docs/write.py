"""Writes the pages that say what the code says: python docs/write.py, or with --check whether they still do."""

import sys
from collections.abc import Callable
from pathlib import Path

from rlstride.claims.table import rules
from rlstride.config.reference import reference
from rlstride.config.schema import schema_text
from rlstride.tables.dictionary import dictionary

ROOT = Path(__file__).resolve().parent.parent
PAGES: dict[str, Callable[[], str]] = {
    "config/schema.json": schema_text,
    "config/README.md": reference,
    "docs/tables.md": dictionary,
}
PARTS: dict[str, Callable[[], str]] = {"docs/claims.md": rules}  # between the two marks of a page
BEGIN, END = "<!-- written by make docs -->\n", "<!-- end -->\n"


def written() -> dict[Path, str]:
    """What each page should hold."""
    found = {ROOT / name: text() for name, text in PAGES.items()}
    for name, text in PARTS.items():
        page = (ROOT / name).read_text(encoding="utf-8")
        before, _, rest = page.partition(BEGIN)
        found[ROOT / name] = f"{before}{BEGIN}{text()}{END}{rest.partition(END)[2]}"
    return found


def main() -> int:
    """Writes the pages, or says which are stale."""
    stale = [page for page, text in written().items() if not page.is_file() or page.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        for page in stale:
            print(f"{page.relative_to(ROOT)}: not what the code says; run make docs", file=sys.stderr)
        return 1 if stale else 0
    for page, text in written().items():
        page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
