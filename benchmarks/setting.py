"""What every result names: processor, commit; and the pages that hold results in sections."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path


def processor() -> str:
    """Model name of the processor and the number of its cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown processor")
    return f"{model}, {os.cpu_count()} cores"


def commit() -> str:
    """Short hash of the checkout; a plus where sources differ from it."""

    def git(*words: str) -> str:
        root = Path(__file__).parents[1]
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--", "data_shards", "foundation", "finetune", "cluster", "benchmarks")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else "")


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
