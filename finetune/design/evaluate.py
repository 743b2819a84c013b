"""How good drawn polymers are: valid, with two stars, distinct, new, unlike each other, near their targets. Nothing drawn is left out.

Source: Polykovskiy et al., MOSES, Front. Pharmacol. 11, 565644 (2020): internal diversity, similarity of fragments; Preuer et al., J. Chem.
Inf. Model. 58, 1736 (2018): Fréchet distance, here of embeddings of the pretrained model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem import rdFingerprintGenerator
from rdkit.Chem.BRICS import FindBRICSBonds

from data_shards.chem.psmiles import canonicalise
from data_shards.errors import PolymerError

MOLECULE = frozenset(
    {"star-count", "star-degree", "ladder", "junction-order", "isotopic-hydrogen"}
)  # reasons of what is a molecule at least
BITS = 2048
BLOCK = 512


@dataclass(frozen=True)
class Judged:
    """Drawn polymers.

    Attributes:
        psmiles: canonical, "" where it is no polymer.
        groups: canonical names, "" where it is none.
        molecule: whether it is a molecule at least, with whatever stars.
    """

    psmiles: tuple[str, ...]
    groups: tuple[str, ...]
    molecule: tuple[bool, ...]


def judge(texts: Sequence[str | None], reasons: Sequence[str]) -> Judged:
    """Strings as polymers.

    Args:
        texts: P-SMILES or any SMILES; None where a graph was none.
        reasons: why it was none, else "".
    """
    psmiles, groups, molecule = [], [], []
    for text, reason in zip(texts, reasons, strict=True):
        name, group, there = "", "", reason in MOLECULE
        if text:
            try:
                found = canonicalise(text)
                name, group, there = found.plain, found.group, True
            except PolymerError as error:
                there = error.reason in MOLECULE
        psmiles.append(name)
        groups.append(group)
        molecule.append(there)
    return Judged(tuple(psmiles), tuple(groups), tuple(molecule))


def quality(judged: Judged, seen: frozenset[str], training: Sequence[str]) -> dict[str, float | None]:
    """Shares and similarities.

    Args:
        judged: M drawn polymers.
        seen: canonical names of all polymers of training.
        training: P-SMILES that fragments are compared with.

    Returns:
        valid: molecules of all draws; stars: of these with two proper stars; unique, novel: of polymers, distinct ones and those not in
        training; diversity: 1 - mean Tanimoto of all pairs, equal ones included; fragments: cosine of counts with training.
    """
    number = len(judged.psmiles)
    polymers = [text for text in judged.psmiles if text]
    groups = [name for name in judged.groups if name]
    molecules = sum(judged.molecule)
    return {
        "drawn": number,
        "valid": molecules / max(number, 1),
        "stars": len(polymers) / max(molecules, 1),
        "unique": len(set(groups)) / max(len(groups), 1),
        "novel": sum(name not in seen for name in groups) / max(len(groups), 1),
        "diversity": diversity(polymers),
        "fragments": fragment_similarity(polymers, training),
    }


def fingerprints(psmiles: Sequence[str]) -> NDArray[np.float32]:
    """(K, BITS) Morgan bits of radius 2, stars included."""
    made = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=BITS)
    rows = [made.GetFingerprintAsNumPy(Chem.MolFromSmiles(text)) for text in psmiles]
    return np.array(rows, dtype=np.float32).reshape(-1, BITS)


def diversity(psmiles: Sequence[str]) -> float | None:
    """1 - mean Tanimoto similarity of all ordered pairs, a polymer with itself included; 0 of equal ones, None of none."""
    if not psmiles:
        return None
    bits = fingerprints(psmiles)
    total, count = 0.0, bits.sum(axis=1)
    for start in range(0, len(bits), BLOCK):
        both = bits[start : start + BLOCK] @ bits.T
        total += float((both / np.maximum(count[start : start + BLOCK, None] + count - both, 1e-9)).sum())
    return 1.0 - total / len(bits) ** 2


def fragments(psmiles: Sequence[str]) -> Counter[str]:
    """Pieces between BRICS bonds, counted."""
    found: Counter[str] = Counter()
    for text in psmiles:
        mol = Chem.MolFromSmiles(text)
        bonds = [mol.GetBondBetweenAtoms(i, j).GetIdx() for (i, j), _ in FindBRICSBonds(mol)]
        with rdBase.BlockLogs():
            cut = Chem.FragmentOnBonds(mol, bonds, addDummies=False) if bonds else mol
            found.update(Chem.MolToSmiles(cut).split("."))
    return found


def fragment_similarity(one: Sequence[str], other: Sequence[str]) -> float | None:
    """Cosine of the counts of fragments, 1 of equal sets; None where one has none."""
    a, b = fragments(one), fragments(other)
    if not a or not b:
        return None
    dot = sum(count * b[name] for name, count in a.items())
    return float(dot / np.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values())))


def frechet(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Distance of the normal distributions of two sets of vectors (K, D) and (L, D), squared."""
    from scipy.linalg import sqrtm

    means, covariances = zip(*((own.mean(axis=0), np.cov(own, rowvar=False)) for own in (one, other)), strict=True)
    root = np.real(sqrtm(covariances[0] @ covariances[1]))
    return float(np.square(means[0] - means[1]).sum() + np.trace(covariances[0] + covariances[1] - 2 * root))


def errors(predicted: NDArray[np.float64], wanted: NDArray[np.float64], scale: Sequence[float]) -> dict[str, Any]:
    """How far an oracle puts polymers from what was asked.

    Args:
        predicted, wanted: (K, P) learned values; NaN where nothing was asked.
        scale: learned values in a unit for people, such as 1 / ln 10.

    Returns:
        mae, median: (P,) absolute errors; bias: (P,) mean of predicted - wanted.
    """
    away = (predicted - wanted) * np.asarray(scale)
    return {
        "mae": np.nanmean(np.abs(away), axis=0).tolist(),
        "median": np.nanmedian(np.abs(away), axis=0).tolist(),
        "bias": np.nanmean(away, axis=0).tolist(),
    }


__all__ = ["Judged", "diversity", "errors", "fingerprints", "fragment_similarity", "frechet", "judge", "quality"]
