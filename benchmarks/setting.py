"""What every result names: processor, commit; and the pages that hold results in sections."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from foundation.objectives import build_objective
from foundation.objectives.polyconfm.model import PolyConFM
from foundation.recipes import get_recipe
from foundation.sampling import provenance
from foundation.sampling.provenance import processor

SOURCES = ("data_shards", "foundation", "finetune", "cluster", "benchmarks")


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


def finish(device: torch.device) -> None:
    """Wait for what the device was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def model_of(recipe: str, device: torch.device) -> PolyConFM:
    """The model of a recipe with random weights."""
    torch.manual_seed(0)
    return build_objective(get_recipe(recipe).objective).to(device)


__all__ = ["commit", "finish", "model_of", "processor", "replace_section"]
