"""The one exception family. A command turns every member into one sentence and exit code 2."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input from a user: the message names the value, the bound and the fix."""


class PolymerError(InputError):
    """A P-SMILES that the platform cannot use.

    Attributes:
        psmiles: the string as given.
        reason: short machine-readable reason, one word or hyphenated, used as the key of the funnel
            (``unparsable``, ``star-count``, ``star-degree``, ``fragments``, ``isotopic-hydrogen``, ``junction-order``, ``ladder``,
            ``too-large``, ``no-conformer``, ``no-self-avoiding-chain`` ...).
    """

    def __init__(self, psmiles: str, reason: str, detail: str) -> None:
        super().__init__(f"{psmiles!r}: {detail}")
        self.psmiles = psmiles
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[PolymerError], tuple[str, str, str]]:
        return type(self), (self.psmiles, self.reason, self.detail)


class ShardError(InputError):
    """A shard, manifest or sample on disk that is missing, torn or of another schema."""


class StorageError(InputError):
    """A store that does not answer, though it was asked for as long as patience lasts: another try later may do."""
