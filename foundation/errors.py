"""Errors of the foundation room: the family of data_shards.errors plus the ones that only models and checkpoints can raise."""

from __future__ import annotations

from data_shards.errors import InputError, PolymerError, ShardError, StorageError

LONGEST = 120  # characters of a value in a message


class ConfigError(InputError):
    """An unknown key, a value out of bounds or two fields that contradict each other."""


class CheckpointError(InputError):
    """A checkpoint that is missing, torn, uncommitted or of another model."""


class ShapeError(InputError):
    """Tensors whose leading dimensions disagree."""


def short(value: object) -> str:
    """A value of a file or a command line, as it may stand in a sentence."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


__all__ = ["CheckpointError", "ConfigError", "InputError", "PolymerError", "ShapeError", "ShardError", "StorageError", "short"]
