"""Which polymers a pretrained model has seen the shapes of."""

from __future__ import annotations

import json
from pathlib import Path

from foundation.errors import InputError
from foundation.train import released


def pretrained_on(checkpoint: str) -> frozenset[str] | None:
    """Canonical names of the polymers of the training and validation splits; None where nobody wrote them down.

    Args:
        checkpoint: released, or a run folder whose shards are still where they were.
    """
    from data_shards.reader import open_shards

    folder = released.folder_of(checkpoint)
    try:
        if folder is not None:
            listed = json.loads((folder / released.POLYMERS).read_text(encoding="utf-8"))
            return frozenset(str(name) for names in listed.values() for name in names)
        shards = open_shards(str(json.loads((Path(checkpoint) / "run.json").read_text(encoding="utf-8"))["shards"]))
        return frozenset(entry.group for split in ("train", "val") if split in shards.manifest.splits for entry in shards.samples(split))
    except (OSError, ValueError, KeyError, AttributeError, InputError):
        return None


__all__ = ["pretrained_on"]
