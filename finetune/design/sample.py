"""Drawing repeat units: back through time, then bonds placed one after another where valences allow them, until all is one piece.

Guidance without a classifier (Ho, Salimans, arXiv 2207.12598): chances of clean classes go as p_null (p_asked / p_null)^scale. The null
branch is told nothing at all, neither properties nor reference; with a scale of 1 it is not even computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.design.graphs import AROMATIC, AROMATIC_BONDS, DOUBLE, NONE, NUM_CLASSES, NUM_KINDS, STAR, VALENCE, Graphs
from finetune.design.network import Asked, Denoiser
from finetune.design.process import STEPS, Prior, draw, draw_prior, noised, stars_first, step_back, symmetric

CARBON = 1
LIKELY = 0.05  # chance of a bond below which a pair is not looked at, unless a piece would stay apart
SURE = 0.5  # chance of a double bond from which a carbon may have a second one, as in an isocyanate
NEVER = -1e9
ROUNDS = 4  # of placing bonds
RINGS = (5, 7)  # bonds of an aromatic ring


@dataclass(frozen=True)
class SampleSettings:
    """How graphs are drawn.

    Attributes:
        steps: through time.
        guidance: scale; 1 draws from what was asked as it was learned, more from what tells it apart.
        power: of a uniform grid that times lie on; above 1 steps are short where little noise is left, and bonds and rings are settled.
        pairs: of atoms in a batch, which bounds its time and memory.
    """

    steps: int = 25
    guidance: float = 2.0
    power: float = 2.0
    pairs: int = 40_000


@dataclass(frozen=True)
class Fixed:
    """A fragment that every graph has: its atoms come first among all that are not stars, or are stars.

    Attributes:
        graph: (1, n) atoms, stars first; a star that the fragment has no bond to is free.
        known: (n, n) pairs that it fixes.
    """

    graph: Graphs
    known: Tensor


@dataclass(frozen=True)
class Drawn:
    """B graphs.

    Attributes:
        graphs: with bonds placed where valences allow.
        plain: every atom and pair drawn by itself, as a network without chemistry has it.
    """

    graphs: Graphs
    plain: Graphs


@torch.no_grad()
def guided(denoiser: Denoiser, now: Graphs, t: Tensor, asked: Asked, scale: float) -> tuple[Tensor, Tensor]:
    """(B, N, A) and (B, N, N, K) chances of clean atoms and pairs.

    Args:
        denoiser: in eval mode.
        now: noisy graphs at times t (B,).
        asked: conditions.
        scale: of the guidance; 1 is what was asked, exactly, and 0 what was not.
    """
    branch = asked if scale != 0 else asked.null()
    found = [own.log_softmax(-1) for own in denoiser(now, t, branch)]
    if scale not in (0, 1):
        null = [own.log_softmax(-1) for own in denoiser(now, t, asked.null())]
        found = [other + scale * (own - other) for own, other in zip(found, null, strict=True)]
    atoms, pairs = (own.softmax(-1) for own in found)
    return atoms, pairs


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    prior: Prior,
    size: Tensor,
    asked: Asked,
    settings: SampleSettings,
    rng: torch.Generator,
    fixed: Fixed | None = None,
    begin: tuple[Graphs, float] | None = None,
) -> Drawn:
    """Draw a graph for each row.

    Args:
        denoiser: in eval mode.
        prior: of the process; classes without a chance are never drawn.
        size: (B,) atoms with stars.
        asked: conditions.
        settings: how.
        rng: of everything drawn.
        fixed: what every graph has.
        begin: graphs of these sizes and the share of the process up to which they are turned into noise first; None: noise alone.
    """
    times = (STEPS * torch.linspace(1, 0, settings.steps + 1) ** settings.power).tolist()
    if begin is None:
        now = draw_prior(prior, size, rng)
    else:
        times = [begin[1] * STEPS, *(t for t in times if t < begin[1] * STEPS)]
        now = noised(begin[0], torch.full((len(size),), times[0]), prior, rng)
    allowed = (prior.atoms > 0).float()
    for t, s in zip(times[:-1], times[1:], strict=True):
        now = _hold(now, fixed, t, prior, rng)
        atoms, pairs = guided(denoiser, now, torch.full((len(size),), t), asked, settings.guidance)
        atoms = (atoms + 1e-12) * allowed
        atoms = atoms / atoms.sum(-1, keepdim=True)
        if s > 0:
            now = step_back(now, atoms, pairs, t, s, rng)
    atoms, pairs = _known(atoms, pairs, fixed)
    chosen = stars_first(draw(atoms, rng), now.mask)
    plain = Graphs(chosen, symmetric(draw(pairs, rng), now.mask), size)
    kept = None
    if fixed is not None:
        kept = torch.zeros(chosen.shape[1], chosen.shape[1], dtype=torch.bool)
        kept[: len(fixed.known), : len(fixed.known)] = fixed.known
    return Drawn(Graphs(chosen, place_bonds(chosen, pairs, size, kept), size), plain)


# ------------------------------------------------------------------------------------------------------------------- bonds


def usage(plain: Tensor, aromatic: Tensor, atoms: Tensor, double: Tensor) -> Tensor:
    """Valences in use: orders of plain bonds, one for each aromatic bond, and one more for carbon that has its double bond in the ring.

    A carbon with a double bond out of the ring, as in an imide or a pyridone, has none in it.
    """
    return plain + aromatic + ((atoms == CARBON) & (aromatic > 0) & ~double)


def place_bonds(atoms: Tensor, pairs: Tensor, size: Tensor, kept: Tensor | None = None) -> Tensor:
    """(B, N, N) kinds, the likeliest pairs first, none that a valence forbids; then pieces are joined where they are likeliest to be.

    Aromatic bonds that close no ring of five to seven aromatic bonds are placed again as another kind.

    Args:
        atoms: (B, N) classes.
        pairs: (B, N, N, K) chances, symmetric.
        size: (B,) atoms.
        kept: (N, N) bool, pairs that are not placed again.
    """
    for _ in range(ROUNDS):
        kinds = _placed(atoms, pairs, size)
        alone = _outside_rings(kinds)
        if kept is not None:
            alone &= ~kept
        if not alone.any():
            break
        pairs = pairs.clone()
        pairs[..., AROMATIC] = torch.where(alone, 0.0, pairs[..., AROMATIC])
    return kinds


def _outside_rings(kinds: Tensor) -> Tensor:
    """(B, N, N) bool, aromatic bonds that lie in no ring of five to seven aromatic bonds."""
    aromatic = (kinds == AROMATIC).float()
    row, i, j = torch.nonzero(torch.triu(aromatic), as_tuple=True)
    place = torch.arange(len(row))
    near = aromatic[row]
    front = near[place, i].clone()
    front[place, j] = 0.0
    reached = front.clone()
    reached[place, i] = 1.0
    closed = torch.zeros(len(row), dtype=torch.bool)
    for length in range(3, RINGS[1] + 1):  # bonds of the ring
        front = ((front[:, None] @ near)[:, 0] > 0).float() * (1 - reached)
        closed |= (front[place, j] > 0) & (length >= RINGS[0])
        front[front[place, j] > 0] = 0.0  # the smallest ring decides
        reached = torch.maximum(reached, front)
    alone = torch.zeros_like(kinds, dtype=torch.bool)
    alone[row[~closed], i[~closed], j[~closed]] = True
    return alone | alone.transpose(1, 2)


def _placed(atoms: Tensor, pairs: Tensor, size: Tensor) -> Tensor:
    """One round of place_bonds."""
    state = _Bonds(atoms, pairs, size)
    bonded = 1.0 - state.chances[..., NONE]
    flat = (bonded * torch.triu(torch.ones_like(bonded), diagonal=1)).flatten(1)
    order = flat.argsort(dim=1, descending=True, stable=True)
    for rank in range(int((flat > LIKELY).sum(1).max())):  # a row a graph; as many turns as the graph with most candidates has
        place = order[:, rank]
        state.add(place // atoms.shape[1], place % atoms.shape[1], flat.gather(1, place[:, None])[:, 0] > LIKELY, forced=False)
    for _ in range(int(size.max())):
        label = state.pieces()
        apart = (label[:, :, None] != label[:, None]) & state.inside
        if not apart.any():
            break
        score = torch.where(apart & state.possible(), bonded.log().clamp(min=-50.0), NEVER)
        best, place = score.flatten(1).max(1)
        if not (best > NEVER).any():
            break
        state.add(place // atoms.shape[1], place % atoms.shape[1], best > NEVER, forced=True)
    return state.kinds


class _Bonds:
    """Bonds of B graphs while they are placed."""

    def __init__(self, atoms: Tensor, pairs: Tensor, size: Tensor) -> None:
        mask = torch.arange(atoms.shape[1]) < size[:, None]
        star = atoms == STAR
        self.inside = mask[:, :, None] & mask[:, None] & ~(star[:, :, None] & star[:, None])
        self.chances = torch.where(self.inside[..., None], pairs, torch.eye(NUM_KINDS)[NONE])
        self.atoms, self.kinds = atoms, torch.zeros_like(pairs[..., 0], dtype=torch.long)
        self.plain, self.aromatic, self.double = torch.zeros_like(atoms), torch.zeros_like(atoms), torch.zeros_like(atoms, dtype=torch.bool)
        self.row = torch.arange(len(atoms))

    def _fits(self, places: Tensor) -> Tensor:
        """(B, K) kinds of a further bond that atoms (B,) have room for."""
        atoms, plain, aromatic, double = (own[self.row, places][:, None] for own in (self.atoms, self.plain, self.aromatic, self.double))
        order = torch.arange(NUM_KINDS)
        after = usage(plain + torch.where(order < AROMATIC, order, 0), aromatic + (order == AROMATIC), atoms, double | (order == DOUBLE))
        return (after <= VALENCE[atoms]) & (aromatic + (order == AROMATIC) <= AROMATIC_BONDS[atoms])

    def add(self, i: Tensor, j: Tensor, wanted: Tensor, forced: bool) -> None:
        """A bond of the likeliest kind that fits, or none where none is likelier and it is not forced."""
        chances = self.chances[self.row, i, j] * (self._fits(i) & self._fits(j))
        second = ((self.atoms[self.row, i] == CARBON) & self.double[self.row, i]) | (
            (self.atoms[self.row, j] == CARBON) & self.double[self.row, j]
        )
        chances[:, DOUBLE] = torch.where(second & (chances[:, DOUBLE] < SURE), 0.0, chances[:, DOUBLE])
        chances[:, NONE] = 0.0 if forced else self.chances[self.row, i, j, NONE]
        kind = torch.where(wanted & (self.kinds[self.row, i, j] == NONE), chances.argmax(-1), NONE)
        new = kind != NONE
        kind, i, j, row = kind[new], i[new], j[new], self.row[new]
        self.kinds[row, i, j] = kind
        self.kinds[row, j, i] = kind
        for end in (i, j):
            self.plain[row, end] += torch.where(kind < AROMATIC, kind, 0)
            self.aromatic[row, end] += kind == AROMATIC
            self.double[row, end] |= kind == DOUBLE

    def possible(self) -> Tensor:
        """(B, N, N) pairs that a single bond fits between."""
        room = usage(self.plain, self.aromatic, self.atoms, self.double) < VALENCE[self.atoms]
        return room[:, :, None] & room[:, None] & self.inside & (self.kinds == NONE)

    def pieces(self) -> Tensor:
        """(B, N) the smallest atom of the piece that each atom lies in."""
        label = torch.arange(self.atoms.shape[1]).expand_as(self.atoms).clone()
        near = (self.kinds != NONE) | torch.eye(self.atoms.shape[1], dtype=torch.bool)
        while True:
            best = torch.where(near, label[:, None], self.atoms.shape[1]).amin(-1)
            if torch.equal(best, label):
                return label
            label = best


# --------------------------------------------------------------------------------------------------------------- fragments


def _hold(now: Graphs, fixed: Fixed | None, t: float, prior: Prior, rng: torch.Generator) -> Graphs:
    """Noisy graphs in which the fragment is what noise makes of it at this time."""
    if fixed is None:
        return now
    n, rows = fixed.graph.atoms.shape[1], len(now.size)
    repeated = Graphs(fixed.graph.atoms.expand(rows, -1), fixed.graph.bonds.expand(rows, -1, -1), fixed.graph.size.expand(rows))
    at_t = noised(repeated, torch.full((rows,), t), prior, rng)
    atoms, bonds = now.atoms.clone(), now.bonds.clone()
    atoms[:, :n] = at_t.atoms
    bonds[:, :n, :n] = torch.where(fixed.known, at_t.bonds, bonds[:, :n, :n])
    return Graphs(atoms, bonds, now.size)


def _known(atoms: Tensor, pairs: Tensor, fixed: Fixed | None) -> tuple[Tensor, Tensor]:
    """Chances in which the fragment is certain."""
    if fixed is None:
        return atoms, pairs
    n = fixed.graph.atoms.shape[1]
    atoms, pairs = atoms.clone(), pairs.clone()
    atoms[:, :n] = torch.eye(NUM_CLASSES)[fixed.graph.atoms[0]]
    pairs[:, :n, :n] = torch.where(fixed.known[..., None], torch.eye(NUM_KINDS)[fixed.graph.bonds[0]], pairs[:, :n, :n])
    return atoms, pairs


__all__ = ["Drawn", "Fixed", "SampleSettings", "guided", "place_bonds", "sample", "usage"]
