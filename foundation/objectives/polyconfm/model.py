"""PolyConFM as one objective: loss, sample and embed side by side.

    P-SMILES tokens --1-D--> chain vector --------\\
    unit graph ------2-D--> atom features, chain --+--> class condition, queries
    unit shapes -----3-D--> unit tokens ----------/         |
         visible units --> trunk encoder --> context --> trunk decoder --> z of every masked unit --> local head: unit shapes
         all units -----> trunk encoder --> context ------------------------------------> orientation head: chain
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from foundation.batch import Batch, Condition, select_chains, to_dense, to_packed
from foundation.encoders.graph import GraphEncoder
from foundation.encoders.sequence import SequenceEncoder
from foundation.encoders.unit import UnitEncoder
from foundation.geometry.assembly import assemble_links, assemble_overlap, chain_coordinates, condition_layout, link_dihedrals
from foundation.nn.parity import Graded, GradedLinear, Learned, Width
from foundation.objectives.base import Capabilities, Embeddings, Failure, LossOut, Samples
from foundation.objectives.polyconfm.auxiliary import Auxiliary, chain_mean
from foundation.objectives.polyconfm.clashes import Surroundings, Untangled, untangle
from foundation.objectives.polyconfm.config import PolyConFMConfig
from foundation.objectives.polyconfm.local_cartesian import CartesianHead
from foundation.objectives.polyconfm.local_ditmc import DiTMCHead
from foundation.objectives.polyconfm.local_torsional import TorsionalHead
from foundation.objectives.polyconfm.orient_so3 import SO3Head
from foundation.objectives.polyconfm.orient_torsion import LinkTorsionHead
from foundation.objectives.polyconfm.proposals import NUM_EXCHANGED, exchanged, polymer_hash
from foundation.objectives.polyconfm.trunk import Trunk, draw_mask, unit_steps
from foundation.objectives.polyconfm.view import GraphView, UnitView, pick_seeds
from foundation.objectives.polyconfm.windows import sample_in_windows

LOCAL_HEADS = {"torsional": TorsionalHead, "cartesian": CartesianHead, "ditmc": DiTMCHead}
ORIENTATION_HEADS = {"torsion": LinkTorsionHead, "so3": SO3Head}


@dataclass(frozen=True)
class Known:
    """What the encoders say before any unit has a shape.

    Attributes:
        graphs: unit graphs with 2-D features.
        klass: (B, .) class condition of each chain, or the null class.
        query: (U, .) what is known of each unit without its shape.
        sequence, graph: (B, De) the 1-D and the 2-D view of each chain, which class condition and query are made of.
    """

    graphs: GraphView
    klass: Graded
    query: Graded
    sequence: Tensor
    graph: Tensor


class PolyConFM(nn.Module):
    """Masked autoregression over repeat units, diffusion of unit shapes, diffusion of their orientation.

    Source: Wang et al., PolyConFM, arXiv 2510.16023, and PolyConf, arXiv 2504.08859. Differs: SOURCES.md lists what and why.
    """

    def __init__(self, config: PolyConFMConfig) -> None:
        super().__init__()
        self.config = config
        width = Width.of(config.width)
        self.width = width
        self.sequence = SequenceEncoder(width.even, config.sequence_layers, config.num_heads)
        self.graph = GraphEncoder(width.even, config.graph_layers)
        self.unit = UnitEncoder(width, width.even, config.unit_layers, config.num_heads, width)
        self.chain_class = nn.Linear(2 * width.even, width.even)
        self.null_class = Learned(width.even)
        self.unit_class = nn.Linear(2 * width.even, width.even)
        self.configuration = nn.Linear(width.even, width.odd, bias=False)
        self.fuse = GradedLinear(width, width)
        self.trunk = Trunk(width, config.trunk_layers, config.num_heads, config.num_registers)
        self.local_head = LOCAL_HEADS[config.local_head](config, width)
        self.orientation_head = ORIENTATION_HEADS[config.orientation_head](config, width)
        self.auxiliary = Auxiliary(config, width)  # last: weights of the others are drawn as without it
        self.capabilities = Capabilities(needs_seed_conformers=config.local_head == "torsional", units_at_once=config.units_at_once)
        self._freeze()

    @property
    def score_networks(self) -> tuple[nn.Module, ...]:
        """What sampling calls at every noise level."""
        return self.local_head, self.orientation_head

    def _freeze(self) -> None:
        """Parameters that the phase does not train; they have no state that a forward pass could change."""
        trained_late = ("orientation_head.",)
        for name, parameter in self.named_parameters():
            if self.config.phase == "orientation":
                parameter.requires_grad_(name.startswith(trained_late))
            elif self.config.phase == "local":
                parameter.requires_grad_(not name.startswith(trained_late))

    def forward(self, batch: Batch, rng: torch.Generator) -> LossOut:
        """The loss, so that distributed engines can wrap the module."""
        return self.loss(batch, rng)

    # ---------------------------------------------------------------------------------------------------------------- encoders

    def know(self, condition: Condition, dropped: Tensor | None = None) -> Known:
        """Encode sequence and graph. dropped: (B,) bool, True where the class is replaced by the null class."""
        atom_feature, graph = self.graph(condition)
        sequence = self.sequence(condition)
        both = torch.cat([sequence, graph], -1)
        klass = self.chain_class(both)
        if dropped is not None:
            klass = torch.where(dropped[:, None], self.null_class().to(klass.dtype), klass)
        # configuration of a unit: its atoms' features weighted by their handedness, which is odd
        chain = condition.unit_chain
        atom = condition.graph_ptr[chain][condition.atom_unit] + condition.atom_slot
        weighted = self.configuration(atom_feature)[atom] * condition.handedness[:, None]
        odd = weighted.new_zeros(len(chain), weighted.shape[-1]).index_add(0, condition.atom_unit, weighted)
        klass_odd = odd.new_zeros(condition.num_chains, odd.shape[-1])
        query = Graded(self.unit_class(both)[chain], odd)
        return Known(GraphView.of(condition, atom_feature), Graded(klass, klass_odd), query, sequence, graph)

    def encode_units(self, x_ang: Tensor, view: UnitView) -> Graded:
        """(M, A, 3) shapes in their frames -> (M, .) tokens."""
        return self.unit(x_ang, view.handedness, view.atoms, view.classes, view.mask, view.key_slot)

    def unit_tokens(self, batch: Condition, known: Known, x_unit: Tensor, chosen: Tensor) -> tuple[Graded, Graded]:
        """(U, .) tokens of the shapes of the chosen units, alone and fused with what is known of them; zero elsewhere."""
        if not bool(chosen.any()):
            return (Graded(torch.zeros_like(known.query.even), torch.zeros_like(known.query.odd)),) * 2
        tokens = self.encode_units(x_unit[chosen], UnitView.of(batch, known.graphs, chosen))
        place = torch.nonzero(chosen)[:, 0]
        alone = Graded(*(t.new_zeros(len(chosen), t.shape[-1]).index_put((place,), t) for t in tokens))
        return alone, self.fill_tokens(known, chosen, tokens)

    def fill_tokens(self, known: Known, chosen: Tensor, tokens: Graded) -> Graded:
        """(U, .) fused tokens with those of the chosen units put in place, zero elsewhere."""
        place = torch.nonzero(chosen)[:, 0]
        fused = self.fuse(tokens)
        fused = Graded(fused.even + known.query.even[chosen], fused.odd + known.query.odd[chosen])
        return Graded(*(t.new_zeros(len(chosen), t.shape[-1]).index_put((place,), t) for t in fused))

    # -------------------------------------------------------------------------------------------------------------------- loss

    def loss(self, batch: Batch, rng: torch.Generator) -> LossOut:
        """Local loss of masked units plus orientation loss of all junctions, as the phase says, plus auxiliary terms; mean over chains."""
        phase, device = self.config.phase, batch.chain_ptr.device
        mask = draw_mask(batch, self.config.full_mask_fraction, self.config.low_mask_fraction, rng, self.config.mask_ratio)
        dropped = torch.rand(batch.num_chains, generator=rng, device=device) < self.config.label_dropout
        known = self.know(batch, dropped if phase != "orientation" else None)
        x_unit = to_dense(batch.x_unit_ang, batch.atom_ptr, batch.max_atoms)  # (U, A, 3)
        trained = ~mask
        trained[0] |= ~trained.any()  # ranks reduce the same gradients: the 3-D encoder has one, if only zero, where no unit is visible
        shapes, tokens = self.unit_tokens(batch, known, x_unit, trained)
        chain = batch.unit_chain
        per_chain = x_unit.new_zeros(batch.num_chains)
        terms: dict[str, Tensor] = {}
        if phase != "orientation":
            context, memory = self.trunk.encode(tokens, known.klass, batch, ~mask)
            z = self.trunk.decode(context, memory, known.query, batch, ~mask)[mask]
            total, count = self.local_head.loss(x_unit[mask], UnitView.of(batch, known.graphs, mask), z, rng)
            local = per_chain.index_add(0, chain[mask], total) / per_chain.index_add(0, chain[mask], count).clamp(min=1)
            has_local = per_chain.index_add(0, chain[mask], count) > 0
            per_chain = per_chain + local
            terms["local"] = (local.sum() / has_local.sum().clamp(min=1)).detach()
        whole: Graded | None = None
        reading = self.config.statistics_weight > 0 or bool(self.config.targets)  # terms that train the trunk on whole chains
        if phase != "local" or self.config.agreement_weight or reading:
            # the local loss never sees masked units; without its gradient they are encoded for others to read, not to be trained
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.orientation_stop_gradient):
                hidden = self.unit_tokens(batch, known, x_unit, ~trained)
            shapes, tokens = shapes + hidden[0], tokens + hidden[1]
            with torch.set_grad_enabled(torch.is_grad_enabled() and (reading or not self.config.orientation_stop_gradient)):
                whole, _ = self.trunk.encode(tokens, known.klass, batch, torch.ones_like(mask))
        if phase != "local" and whole is not None:
            context, graphs = whole, known.graphs
            if self.config.orientation_stop_gradient:
                context, graphs = context.detach(), replace(graphs, atoms=graphs.atoms.detach())
            orientation = self.orientation_head.loss(batch, batch.world_from_unit, x_unit, batch.link_dihedral_rad, context, graphs, rng)
            has_link = batch.num_units > 1 if self.config.orientation_head == "torsion" else batch.num_units > 0
            per_chain = per_chain + self.config.orientation_weight * orientation
            terms["orientation"] = (orientation.sum() / has_link.sum().clamp(min=1)).detach()
        if phase != "orientation":  # which trains nothing that the auxiliary terms read
            for name, weight, term in self.auxiliary_terms(batch, known, shapes, whole, rng):
                per_chain = per_chain + weight * term
                terms[name] = term.mean().detach()
        return LossOut(per_chain.mean(), terms, per_chain.detach())

    def auxiliary_terms(
        self, batch: Batch, known: Known, shapes: Graded, whole: Graded | None, rng: torch.Generator
    ) -> list[tuple[str, float, Tensor]]:
        """Name, weight and (B,) value of each auxiliary term that has a weight. shapes: (U, .) unit tokens; whole: (U, .) full context."""
        config, found = self.config, []
        if config.token_weight:
            noise = rng.clone_state()  # rng stays where the main terms left it
            found.append(("tokens", config.token_weight, self.auxiliary.tokens(self.sequence, batch, noise)))
        if config.agreement_weight:
            term = self.auxiliary.agreement(known.sequence, known.graph, chain_mean(shapes.even, batch), polymer_hash(batch))
            found.append(("agreement", config.agreement_weight, term))
        if config.statistics_weight and whole is not None:
            found.append(("statistics", config.statistics_weight, self.auxiliary.statistics(whole.even, batch)))
        if config.targets and whole is not None:
            views = known.sequence, known.graph, chain_mean(whole.even, batch)
            if config.descriptor_weight:
                found.append(("descriptors", config.descriptor_weight, self.auxiliary.descriptors(views, batch.descriptors)))
            if config.level_weight:
                found.append(("levels", config.level_weight, self.auxiliary.levels(views, batch.levels)))
        return found

    # ------------------------------------------------------------------------------------------------------------------ sample

    @torch.no_grad()
    def sample(self, condition: Condition, num: int, rng: torch.Generator) -> Samples:
        """num conformations of every chain: units in a few autoregressive steps, then their orientation, then clashes removed.

        Long chains go window by window (windows.py), except with rotations that need not satisfy both overlaps.
        """
        chains = torch.arange(condition.num_chains, device=condition.chain_ptr.device).repeat_interleave(num)
        condition = select_chains(condition, chains)
        key, link = condition.key_slot[condition.unit_chain], condition.link_slot[condition.unit_chain]
        start = condition.unit_position == 0
        info: dict[str, float] = {}
        if self.config.units_at_once is None:
            known = self.know(condition)
            x_unit, tokens = self.sample_units(condition, known, rng)
            context, _ = self.trunk.encode(tokens, known.klass, condition, torch.ones_like(start))
            rot = self.orientation_head.sample(condition, x_unit, context, known.graphs, rng)
            x_world = assemble_overlap(rot, x_unit, key, start)
            phi = link_dihedrals(x_world, key, link, start)
        else:
            x_unit, phi, info = sample_in_windows(self, condition, rng)
            x_world, _ = assemble_links(x_unit, key, link, start, phi)
        layout = condition_layout(condition)
        x_ang = chain_coordinates(x_world, layout)
        x_ang, failures = _centre(x_ang, layout.heavy_ptr)
        return Samples(x_ang, layout.heavy_ptr, failures, to_packed(x_unit, condition.atom_ptr), phi.float(), info)

    def sample_links(
        self,
        condition: Condition,
        known: Known,
        x_unit: Tensor,
        tokens: Graded,
        rng: torch.Generator,
        angles: Tensor | None = None,
        around: Surroundings | None = None,
    ) -> Untangled:
        """Link dihedrals of every chain: a joint draw, untangled by choosing among alternatives.

        Args:
            angles: (U,) preferred to those drawn, NaN where there is no preference.
            around: where the chains are windows of longer ones; angles between settled units are kept.
        """
        context, _ = self.trunk.encode(tokens, known.klass, condition, torch.ones_like(condition.has_next))
        draws = self.draw_links(condition, x_unit, context, known.graphs, rng)[None]
        if self.config.clash_rounds:
            draws = torch.cat([draws, self.propose_links(draws[0], condition, x_unit, context, known.graphs, rng)])
        if angles is not None:
            draws[0] = torch.where(angles.isnan(), draws[0], angles)
        if around is not None:
            draws = torch.where(around.settled & around.settled[condition.unit_after], draws[0], draws)
        return untangle(draws, x_unit, condition, known.graphs.classes, self.config.clash_rounds, rng, around)

    def redraw_clashing(
        self, condition: Condition, x_unit: Tensor, made: Untangled, rng: torch.Generator, around: Surroundings | None = None
    ) -> tuple[Tensor, Untangled]:
        """Clashes that no link dihedral removes: the units are masked, drawn again given all others, and untangled with the angles at hand.

        A chain keeps its new conformation where it has fewer clashes, or as many.
        """
        for _ in range(self.config.clash_redraws if self.config.clash_rounds else 0):
            if not made.units.shape[1]:
                break
            chain = condition.unit_chain
            chosen = torch.unique(chain[made.units])
            part, unit = select_chains(condition, chosen), torch.isin(chain, chosen).nonzero()[:, 0]
            kept = torch.ones_like(condition.has_next).index_fill(0, made.units.flatten(), False)[unit]
            near = None if around is None else around.of(chosen, unit)
            kept = kept if near is None else kept | near.settled
            known = self.know(part)
            x_part, _ = self.sample_units(part, known, rng, x_unit[unit][:, : part.max_atoms], kept)
            draws = torch.cat([made.angles_rad[None], made.alternatives_rad])[:, unit]
            again = untangle(draws, x_part, part, known.graphs.classes, self.config.clash_rounds, rng, near)
            count = torch.bincount(chain[made.units[0]], minlength=condition.num_chains)
            better = torch.bincount(part.unit_chain[again.units[0]], minlength=len(chosen)) <= count[chosen]
            taken = better[part.unit_chain]  # (units of part,)
            x_unit, angles = x_unit.clone(), made.angles_rad.clone()
            x_unit[unit[taken], : part.max_atoms] = x_part[taken]
            angles[unit[taken]] = again.angles_rad[taken]
            old = made.units[:, ~torch.isin(chain[made.units[0]], chosen[better])]
            new = unit[again.units[:, taken[again.units[0]]]]
            made = Untangled(angles, torch.cat([old, new], 1), made.num_before, made.alternatives_rad)
        return x_unit, made

    def propose_links(
        self, drawn: Tensor, condition: Condition, x_unit_ang: Tensor, context: Graded, graphs: GraphView, rng: torch.Generator
    ) -> Tensor:
        """(P, U) alternatives to the drawn angles: those of other junctions of the same kind.

        Chains with a junction of a rare kind get further joint draws, fewer than P, each several times.
        """
        proposals, rare = exchanged(drawn, condition, NUM_EXCHANGED, rng)
        chosen = torch.unique(condition.unit_chain[rare])
        if len(chosen):
            part, unit = select_chains(condition, chosen), torch.isin(condition.unit_chain, chosen).nonzero()[:, 0]
            given = part, x_unit_ang[unit, : part.max_atoms], context[unit], graphs.select(chosen)
            draws = torch.stack([self.draw_links(*given, rng) for _ in range(self.config.clash_proposals)])
            proposals[:, unit] = draws[torch.arange(NUM_EXCHANGED, device=draws.device) % len(draws)]
        return proposals

    def draw_links(self, condition: Condition, x_unit_ang: Tensor, context: Graded, graphs: GraphView, rng: torch.Generator) -> Tensor:
        """(U,) link dihedrals of every chain, drawn jointly; rotations that satisfy both overlaps are given by them."""
        drawn = self.orientation_head.sample(condition, x_unit_ang, context, graphs, rng)
        if self.config.orientation_head == "torsion":
            return drawn
        key, link = condition.key_slot[condition.unit_chain], condition.link_slot[condition.unit_chain]
        start = condition.unit_position == 0
        return link_dihedrals(assemble_overlap(drawn, x_unit_ang, key, start), key, link, start).float()

    def sample_units(
        self, condition: Condition, known: Known, rng: torch.Generator, x_unit: Tensor | None = None, kept: Tensor | None = None
    ) -> tuple[Tensor, Graded]:
        """(U, A, 3) unit shapes and (U, .) their tokens, generated in random order, the units of a step at once.

        Args:
            x_unit: (U, A, 3) shapes of the units that are kept.
            kept: (U,) bool, units whose shape is given; None: every unit is generated.
        """
        device = condition.chain_ptr.device
        visible = torch.zeros_like(condition.has_next)
        x_new = torch.zeros(len(visible), condition.max_atoms, 3, device=device)
        tokens = Graded(*(torch.zeros(len(visible), w, device=device) for w in self.width))
        if x_unit is not None and kept is not None and bool(kept.any()):
            visible, x_new = kept, torch.where(kept[:, None, None], x_unit, 0.0)
            tokens = self.fill_tokens(known, kept, self.encode_units(x_new[kept], UnitView.of(condition, known.graphs, kept)))
        step = unit_steps(condition, self.config.ar_steps, rng).masked_fill(visible, -1)
        guided = self.config.guidance != 1.0
        free = self.know(condition, torch.ones(condition.num_chains, dtype=torch.bool, device=device)) if guided else None
        for k in torch.unique(step[~visible]).tolist():
            chosen = step == k
            z = self._decode(condition, known, tokens, visible)[chosen]
            null = self._decode(condition, free, tokens, visible)[chosen] if free is not None else None
            view = UnitView.of(condition, known.graphs, chosen)
            seeds = pick_seeds(condition, chosen, rng) if self.capabilities.needs_seed_conformers else None
            x_new[chosen] = self.local_head.sample(seeds, view, z, rng, null, self.config.guidance)
            tokens = tokens + self.fill_tokens(known, chosen, self.encode_units(x_new[chosen], view))
            visible = visible | chosen
        return x_new, tokens

    def _decode(self, condition: Condition, known: Known, tokens: Graded, visible: Tensor) -> Graded:
        context, memory = self.trunk.encode(tokens, known.klass, condition, visible)
        return self.trunk.decode(context, memory, known.query, condition, visible)

    # ------------------------------------------------------------------------------------------------------------------- embed

    def embed(self, given: Condition) -> Embeddings:
        """Trunk context of every unit, all visible; of a chain its mean, class condition and 2-D view (C = 3 D). Even: mirror images agree.

        A Condition that is no Batch has no shapes: every unit is masked, and what the trunk expects of it takes the place of its context.
        Probes read more from the three together than from the first alone (docs/results/probes.md).
        """
        known = self.know(given)
        if isinstance(given, Batch):
            everything = torch.ones_like(given.has_next)
            x_unit = to_dense(given.x_unit_ang, given.atom_ptr, given.max_atoms)
            _, tokens = self.unit_tokens(given, known, x_unit, everything)
            context, _ = self.trunk.encode(tokens, known.klass, given, everything)
        else:
            nothing = torch.zeros_like(given.has_next)
            context = self._decode(given, known, self.unit_tokens(given, known, given.handedness, nothing)[1], nothing)
        return Embeddings(context.even, torch.cat([chain_mean(context.even, given), known.klass.even, known.graph], -1))


def _centre(x_ang: Tensor, ptr: Tensor) -> tuple[Tensor, list[Failure]]:
    """Centre every chain; a chain with a coordinate that is not finite is a failure and all NaN."""
    owner = torch.repeat_interleave(torch.arange(len(ptr) - 1, device=ptr.device), ptr.diff())
    zeros = x_ang.new_zeros(len(ptr) - 1, 3)
    broken = zeros[:, 0].index_add(0, owner, (~x_ang.isfinite().all(-1)).to(x_ang.dtype)) > 0
    x_ang = torch.where(broken[owner][:, None], torch.nan, x_ang)
    mean = zeros.index_add(0, owner, x_ang) / ptr.diff()[:, None]
    failures = [Failure(int(chain), "coordinates are not finite") for chain in torch.nonzero(broken)[:, 0]]
    return x_ang - mean[owner], failures
