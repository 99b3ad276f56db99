"""docs/benchmarks.md: each benchmark writes its own section, with the machine and the versions that it ran on."""

import os
import platform
import re
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"


def write_section(name: str, text: str, script: str | None = None) -> None:
    """Puts ``text`` between the marks of a section, or at the end under new marks.

    Args:
        name: of the section, such as ``spectra``.
        text: Markdown.
        script: that writes it, where it is not called as the section is.
    """
    begin, end = f"<!-- {name}: written by benchmarks/{script or name}.py -->", f"<!-- {name}: end -->"
    whole = DOCUMENT.read_text(encoding="utf-8")
    section = f"{begin}\n{text.strip()}\n{end}"
    if begin in whole:
        whole = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: section, whole, flags=re.DOTALL)
    else:
        whole = f"{whole.rstrip()}\n\n{section}"
    DOCUMENT.write_text(whole.rstrip() + "\n", encoding="utf-8")


def markdown(table: pd.DataFrame) -> str:
    """A table with numbers as they stand in it: make them strings first."""
    rows = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def machine() -> str:
    """One sentence: processor, memory, operating system, Python, torch, day."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB{gpu}; {platform.system()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, NumPy {version('numpy')}, "
        f"safetensors {version('safetensors')}; {datetime.now(UTC):%Y-%m-%d}."
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.is_file() else ""
    found = re.search(r"model name\s*:\s*(.+)", text)
    name = found[1].strip() if found else platform.processor()
    fast = " (avx512_bf16)" if "avx512_bf16" in text else ""
    return name + fast
