"""What every result names: processor, commit; and the pages that hold results in sections."""

from __future__ import annotations

import os
import re
from pathlib import Path

from foundation.sampling import provenance

SOURCES = ("data_shards", "foundation", "finetune", "cluster", "benchmarks")


def processor() -> str:
    """Model name of the processor and the number of its cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown processor")
    return f"{model}, {os.cpu_count()} cores"


def commit() -> str:
    """Short hash of the checkout; a plus where sources differ from it."""
    head, _, changes = (provenance.commit(*SOURCES) or "unknown").partition("+")
    return head[:7] + ("+" if changes else "")


def replace_section(page: Path, title: str, heading: str, text: str) -> None:
    """Put a section in its place of a page, or at the end of it.

    Args:
        page: Markdown file, made with the title where there is none.
        heading: first line of the text.
        text: the section.
    """
    old = page.read_text() if page.exists() else f"{title}\n"
    pattern = re.compile(rf"^{re.escape(heading)}$.*?(?=^## |\Z)", flags=re.DOTALL | re.MULTILINE)
    new = pattern.sub(lambda _: text.rstrip() + "\n\n", old) if pattern.search(old) else f"{old.rstrip()}\n\n{text}"
    page.write_text(new.rstrip() + "\n")
