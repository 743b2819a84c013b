"""Chemically plausible chains of the fixture polymers, built without the platform's own chemistry."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rdkit import Chem, RDLogger
from rdkit.Chem import AllChem
from torch import Tensor

from foundation.geometry.assembly import ChainLayout, assemble_links, chain_coordinates, chain_layout

FIXTURES = {
    "ester": "*Oc1ccc(CC(*)=O)cc1",
    "styrene": "*CC(*)c1ccccc1",
    "methacrylate": "*CC(*)(C)C(=O)OC",
    "nylon6": "*NC(=O)CCCCC(*)=O",
    "methylene": "*C*",
    "phenylene": "*c1ccc(*)cc1",
    "siloxane": "*O[Si](*)(C)C",
    "vinylene": "*C=C*",
    "ring_double": "*=CC1CCC(C1)C=*",
    "star_inside": "c1cc(O*)ccc1CC(=O)*",
}


@dataclass(frozen=True)
class Unit:
    """One repeat unit graph with conformers."""

    key: tuple[int, int, int, int]  # star0, nbr0, nbr1, star1
    frame: tuple[int, int, int]
    link: tuple[int, int]
    bonds: NDArray[np.int64]  # (m, 2)
    torsions: list[tuple[int, int, int, int]]
    moved: NDArray[np.bool_]  # (T, n)
    shapes: NDArray[np.float64]  # (K, n, 3)

    @property
    def num_atoms(self) -> int:
        return self.shapes.shape[1]


@dataclass(frozen=True)
class Chains:
    """A packed batch of chains with its inputs."""

    x_chain: Tensor  # (sum of H, 3) float64
    layout: ChainLayout
    key_slot: Tensor
    frame_slot: Tensor
    link_slot: Tensor

    @property
    def start_mask(self) -> Tensor:
        return self.layout.start_mask


def _sine(x: NDArray[np.float64], triple: tuple[int, ...]) -> float:
    a, o, b = (x[i] for i in triple)
    u, v = o - a, b - o
    return float(np.linalg.norm(np.cross(u, v)) / (np.linalg.norm(u) * np.linalg.norm(v) + 1e-12))


def _sides(n: int, bonds: NDArray[np.int64], b: int, c: int) -> set[int]:
    """Atoms on the side of c once the bond b-c is cut; holds b too where the bond is in a ring."""
    seen, front = {c}, [c]
    while front:
        i = front.pop()
        for u, v in bonds.tolist():
            for p, q in ((u, v), (v, u)):
                if p == i and q not in seen and {p, q} != {b, c}:
                    seen.add(q)
                    front.append(q)
    return seen


def _torsions(n: int, bonds: NDArray[np.int64]) -> tuple[list[tuple[int, int, int, int]], NDArray[np.bool_]]:
    slots, moved = [], []
    neighbours = {i: sorted({j for bond in bonds.tolist() if i in bond for j in bond} - {i}) for i in range(n)}
    for b, c in bonds.tolist():
        side = _sides(n, bonds, b, c)
        if b in side:
            continue
        if 2 * len(side) > n:
            b, c, side = c, b, set(range(n)) - side
        if len(side) < 2 or len(side) > n - 2:
            continue
        slots.append((min(i for i in neighbours[b] if i != c), b, c, min(i for i in neighbours[c] if i != b)))
        moved.append([i in side and i != c for i in range(n)])
    return slots, np.array(moved, dtype=bool).reshape(len(slots), n)


@cache
def build_unit(psmiles: str) -> Unit:
    """Substitute the stars, embed with ETKDG, choose frame and link atoms."""
    RDLogger.DisableLog("rdApp.*")
    mol = Chem.RWMol(Chem.MolFromSmiles(psmiles))
    pairs = [(a.GetNeighbors()[0].GetIdx(), a.GetIdx()) for a in mol.GetAtoms() if a.GetAtomicNum() == 0]
    (nbr0, star0), (nbr1, star1) = sorted(pairs)
    mol.GetAtomWithIdx(star0).SetAtomicNum(mol.GetAtomWithIdx(nbr1).GetAtomicNum())
    mol.GetAtomWithIdx(star1).SetAtomicNum(mol.GetAtomWithIdx(nbr0).GetAtomicNum())
    for atom in mol.GetAtoms():
        atom.SetNoImplicit(False)
    Chem.SanitizeMol(mol)
    full = Chem.AddHs(mol.GetMol())
    ids = list(AllChem.EmbedMultipleConfs(full, 6, randomSeed=7))
    n = mol.GetNumAtoms()
    shapes = np.stack([full.GetConformer(i).GetPositions()[:n] for i in ids])
    bonds = np.array([sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx())) for b in mol.GetBonds()])
    candidates = [(star0, nbr1, star1), *((star0, nbr0, k) for k in range(n) if k not in (star0, nbr0))]
    good = [t for t in candidates if len(set(t)) == 3 and min(_sine(x, t) for x in shapes) > 0.2]
    near = {i: sorted(a.GetIdx() for a in mol.GetAtomWithIdx(i).GetNeighbors()) for i in (nbr0, nbr1)}
    link = (next(i for i in near[nbr1] if i != star1), next(i for i in near[nbr0] if i != star0))
    torsions, moved = _torsions(n, bonds)
    return Unit((star0, nbr0, nbr1, star1), good[0], link, bonds, torsions, moved, shapes)


def build_chains(members: list[tuple[str, int]], *, extended: bool = False, seed: int = 0) -> Chains:
    """Chains of (psmiles, N) packed together, each unit a random conformer, float64."""
    rng = np.random.default_rng(seed)
    units = [build_unit(psmiles) for psmiles, _ in members]
    width = max(unit.num_atoms for unit in units)
    x = np.zeros((sum(num for _, num in members), width, 3))
    owner = list(itertools.chain.from_iterable([i] * num for i, (_, num) in enumerate(members)))
    for row, i in enumerate(owner):
        pick = 0 if extended else rng.integers(len(units[i].shapes))
        x[row, : units[i].num_atoms] = units[i].shapes[pick]
    start = torch.tensor([row == 0 or owner[row] != owner[row - 1] for row in range(len(owner))])
    key, frame, link = (torch.tensor([getattr(units[i], name) for i in owner]) for name in ("key", "frame", "link"))
    phi = torch.full((len(owner),), torch.pi) if extended else torch.tensor(rng.uniform(-np.pi, np.pi, len(owner)))
    world, _ = assemble_links(torch.tensor(x), key, link, start, phi)
    layout = chain_layout(key, torch.tensor([units[i].num_atoms for i in owner]), start, width)
    return Chains(chain_coordinates(world, layout), layout, key, frame, link)


@pytest.fixture
def chains() -> Callable[..., Chains]:
    return build_chains


@pytest.fixture
def unit() -> Callable[[str], Unit]:
    return build_unit


@pytest.fixture
def fixtures() -> dict[str, str]:
    return FIXTURES


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(20)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)
