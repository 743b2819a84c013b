"""DiTMC as one objective: loss, sample and embed side by side. Molecules are whole chains, or pieces of them that training cuts.

graph --conditioner--> tokens of atoms and bonds, classes of pairs --+
x_t, t ---------------------------------------------------------------+--> transformer --> where atoms end, and the noise on their path
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foundation.batch import Batch, Condition, cut_chains, first_units, to_dense, to_packed
from foundation.geometry.align import kabsch
from foundation.geometry.assembly import chain_coordinates
from foundation.geometry.rotations import random_rotations
from foundation.molecules import Molecules, chain_atoms
from foundation.objectives.base import Capabilities, Embeddings, Failure, LossOut, Samples
from foundation.objectives.ditmc.config import DiTMCConfig
from foundation.objectives.ditmc.equivariant import EquivariantTransformer
from foundation.objectives.ditmc.flow import Path, follow, guided
from foundation.objectives.ditmc.network import Conditioner, Known, Transformer
from foundation.objectives.ditmc.prior import centre, draw_prior


class DiTMC(nn.Module):
    """Flow matching of all heavy atoms of a molecule at once.

    Source: Frank et al., DiTMC, arXiv 2506.15378. Differs: docs/objectives/ditmc.md says what and why.
    """

    def __init__(self, config: DiTMCConfig) -> None:
        super().__init__()
        self.config = config
        self.path = Path.of(config)
        self.conditioner = Conditioner(config)
        self.network = EquivariantTransformer(config) if config.scheme == "pe3" else Transformer(config)
        self.capabilities = Capabilities(unit_level=False, molecules=True)

    @property
    def score_networks(self) -> tuple[nn.Module, ...]:
        """What sampling calls at every time."""
        return (self.network,)

    def forward(self, batch: Batch | Molecules, rng: torch.Generator) -> LossOut:
        """The loss, so that distributed engines can wrap the module."""
        return self.loss(batch, rng)

    # -------------------------------------------------------------------------------------------------------------------- loss

    def loss(self, batch: Batch | Molecules, rng: torch.Generator) -> LossOut:
        """Error of predicted atoms, mean over atoms of a molecule, then over molecules."""
        if isinstance(batch, Molecules):
            assert batch.x_ang is not None
            molecules, x = batch, batch.x_ang
        else:
            molecules, x = self.pieces(batch, rng)
        clean, noise = self.errors(molecules, x, rng)
        terms = {"clean" if self.config.predict == "clean" else "velocity": clean.mean().detach()}
        if self.config.noise == "bridge" and self.config.predict == "clean":
            terms["noise"] = noise.mean().detach()
        per_chain = clean + noise
        return LossOut(per_chain.mean(), terms, per_chain.detach())

    def pieces(self, batch: Batch, rng: torch.Generator) -> tuple[Molecules, Tensor]:
        """One molecule of each chain, whole or `units` of its repeat units, and its atoms (B, n, 3)."""
        x = chain_atoms(batch)
        part: Condition = batch
        if self.config.units:
            number = batch.num_units.clamp(max=self.config.units)
            spare = batch.num_units - number + 1
            begin = (torch.rand(len(spare), generator=rng, device=spare.device) * spare).long().clamp(max=spare - 1)
            every = torch.arange(batch.num_chains, device=spare.device)
            part, unit = cut_chains(batch, first_units(batch), batch.atom_ptr, every, begin, begin + number)
            x = x[unit, : part.max_atoms]
        molecules, layout = Molecules.of_chains(part)
        heavy = chain_coordinates(x, layout)
        return molecules, to_dense(heavy, layout.heavy_ptr, molecules.mask.shape[1]).float()

    def errors(self, molecules: Molecules, x1: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """(B,) errors of clean atoms (or velocities) and of noise, each the mean over atoms."""
        config, mask = self.config, molecules.mask
        rows, device = len(mask), mask.device
        turn = random_rotations((rows,), rng, device=device, dtype=torch.float64)
        x1 = centre((x1.double() @ turn.transpose(1, 2)), mask).float()
        x0 = draw_prior(molecules, config.prior, rng)
        if config.align:
            x0 = centre(kabsch(x0, x1, mask)[0].apply(x0), mask)
        z = centre(torch.randn(x1.shape, generator=rng, device=device), mask)
        t = self.path.draw_times(rows, config.times, rng, device)
        told = torch.rand(rows, generator=rng, device=device) >= config.drop if config.drop else None
        known = self.conditioner(molecules, told)
        predicted = self.heads(self.path.between(x0, x1, z, t), t, known)
        number = mask.sum(1).clamp(min=1)
        clean, noise = ((own * mask).sum(1) / number for own in self.path.errors(predicted, x0, x1, z, t))
        return clean, noise

    def heads(self, x: Tensor, t: Tensor, known: Known) -> tuple[Tensor, Tensor]:
        """(B, n, 3) clean atoms or velocities, and noise, both centred."""
        first, second = self.network(x, t, known).float().chunk(2, -1)
        first = first if self.config.predict == "velocity" else self.path.clean(x, t, first)
        return centre(first, known.mask), centre(second, known.mask)

    # ------------------------------------------------------------------------------------------------------------------ sample

    @torch.no_grad()
    def sample_molecules(self, molecules: Molecules, rng: torch.Generator) -> Tensor:
        """(B, n, 3) angstrom, centred, padding zero."""
        config = self.config
        known = self.conditioner(molecules)
        nothing = torch.zeros(len(molecules.mask), dtype=torch.bool, device=molecules.mask.device)
        free = self.conditioner(molecules, nothing) if config.guidance != 1 else None

        def heads(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            told = self.heads(x, t, known)
            return told if free is None else guided(told, self.heads(x, t, free), config.guidance)

        x = draw_prior(molecules, config.prior, rng)
        return follow(self.path, heads, x, config.solver, config.steps, config.tolerance)

    @torch.no_grad()
    def sample(self, condition: Condition, num: int, rng: torch.Generator) -> Samples:
        """num conformations of every chain, all atoms of a chain at once."""
        molecules, layout = Molecules.of_chains(condition)
        x = self.sample_molecules(molecules.repeated(num), rng).double()
        broken = ~x.isfinite().all(-1).all(-1)
        x = torch.where(broken[:, None, None], torch.nan, x)
        counts = layout.heavy_ptr.diff().repeat_interleave(num)
        ptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        failures = [Failure(int(chain), "coordinates are not finite") for chain in torch.nonzero(broken)[:, 0]]
        return Samples(to_packed(x, ptr), ptr, failures)

    # ------------------------------------------------------------------------------------------------------------------- embed

    def embed(self, given: Condition) -> Embeddings:
        """What the conditioner says of atoms: (U, D) means over the atoms of each unit, (B, D) over those of each chain."""
        molecules, layout = Molecules.of_chains(given)
        tokens = to_packed(self.conditioner(molecules).atoms, layout.heavy_ptr)
        chain = torch.repeat_interleave(torch.arange(given.num_chains, device=tokens.device), layout.heavy_ptr.diff())
        count = layout.exists.sum(1, keepdim=True)
        unit = (tokens[layout.atom] * layout.exists[..., None]).sum(1) / count
        total = tokens.new_zeros(given.num_chains, tokens.shape[1]).index_add(0, chain, tokens)
        return Embeddings(unit, total / layout.heavy_ptr.diff()[:, None])


__all__ = ["DiTMC"]
