"""Several shard sets as one, with the share that each has of the samples: what `--shards PATH=WEIGHT --shards PATH=WEIGHT` names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from data_shards.errors import InputError, ShardError
from data_shards.manifest import SampleEntry
from data_shards.reader import ShardSet, open_shards

NUMBER = re.compile(r"\d+(\.\d*)?([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?")
FORM = "write --shards PATH=WEIGHT, such as --shards shards/md=0.8 --shards shards/grow=0.2"

Sources = Mapping[str, float | None]  # address -> weight; None: as many as it has training samples


def parse_sources(words: Sequence[str]) -> dict[str, float | None]:
    """Addresses and weights from `PATH` or `PATH=WEIGHT`. A number after the last `=` is a weight; an address that ends so takes a `/`.

    Raises:
        InputError: an address twice.
    """
    sources: dict[str, float | None] = {}
    for word in words:
        path, _, number = word.rpartition("=")
        weighted = bool(path) and NUMBER.fullmatch(number) is not None
        address = path if weighted else word
        if address in sources:
            raise InputError(f"--shards {address} was given twice; name each set once, with the sum of the weights")
        sources[address] = float(number) if weighted else None
    return sources


@dataclass(frozen=True)
class Mixture:
    """Shard sets that are read together; one set alone is a mixture too.

    Attributes:
        sets: as opened.
        weights: share of each in the stream of samples; their sum is 1.
        left_out: training samples of each set whose polymer is in val or test of another.
        held_out: groups of the polymers in val and test, where there are several sets.
    """

    sets: tuple[ShardSet, ...]
    weights: tuple[Fraction, ...]
    left_out: tuple[int, ...]
    held_out: frozenset[str]

    @property
    def path(self) -> str:
        """Addresses with their weights, for people."""
        if len(self.sets) == 1:
            return self.sets[0].path
        return " ".join(f"{opened.path}={float(weight):.6g}" for opened, weight in zip(self.sets, self.weights, strict=True))

    @property
    def fingerprint(self) -> str:
        """That of the set, or of all sets and their weights: equal fingerprints mean the same stream of samples."""
        if len(self.sets) == 1:
            return self.sets[0].fingerprint
        lines = (f"{opened.fingerprint} {weight}\n" for opened, weight in zip(self.sets, self.weights, strict=True))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def samples(self, split: str) -> list[list[SampleEntry]]:
        """Entries of one split, set by set, without what `left_out` counts.

        Raises:
            ShardError: no such split.
        """
        found = [opened.samples(split) for opened in self.sets]
        if split != "train" or not any(self.left_out):
            return found
        return [[entry for entry in entries if entry.group not in self.held_out] for entries in found]

    def count(self, split: str) -> int:
        """Samples of one split."""
        return sum(map(len, self.samples(split)))


def open_mixture(sources: str | Sources) -> Mixture:
    """Open one or several shard sets.

    A polymer that is in val or test of one set is left out of the training samples of the others, so that no set tells the secrets of
    another.

    Args:
        sources: an address, or addresses with their weights: of all of them or of none, which means as many as they have training samples.

    Raises:
        ShardError: as open_shards; or a set of which nothing is left to train on.
        InputError: no address; a weight that is not positive; weights for some only; two addresses of the same samples.
    """
    given = {sources: None} if isinstance(sources, str) else dict(sources)
    if not given:
        raise InputError(f"no shards were named; {FORM}")
    wrong = [path for path, weight in given.items() if weight is not None and not 0 < weight < float("inf")]
    if wrong:
        raise InputError(f"the weight {given[wrong[0]]:g} of shards {wrong[0]} must be above 0; {FORM}, or leave the set out")
    bare = [path for path, weight in given.items() if weight is None]
    if bare and len(bare) < len(given):
        raise InputError(f"shards {bare[0]} has no weight and others have; give a weight to all or to none")
    sets = tuple(open_shards(path) for path in given)
    for place, opened in enumerate(sets):
        same = [other.path for other in sets[:place] if other.fingerprint == opened.fingerprint]
        if same:
            raise InputError(f"shards {opened.path} holds the same samples as {same[0]}; name it once, with the sum of the weights")
    held_out = frozenset(e.group for o in sets for split in ("val", "test") for e in o.samples(split)) if len(sets) > 1 else frozenset()
    left_out = tuple(sum(e.group in held_out for e in opened.samples("train")) for opened in sets)
    sizes = [len(opened.samples("train")) - lost for opened, lost in zip(sets, left_out, strict=True)]
    empty = [opened.path for opened, size in zip(sets, sizes, strict=True) if not size]
    if empty and len(sets) > 1:
        raise ShardError(f"{empty[0]} has no training sample that is not in val or test of another set; leave it out, or build more")
    parts = [Fraction(size) if weight is None else Fraction(str(weight)) for size, weight in zip(sizes, given.values(), strict=True)]
    total = sum(parts)
    return Mixture(sets, tuple(part / total for part in parts) if total else (Fraction(1),), left_out, held_out)


__all__ = ["Mixture", "Sources", "open_mixture", "parse_sources"]
