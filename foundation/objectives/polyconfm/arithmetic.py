"""Floating-point operations of a step of PolyConFM, by formula: what the matrix products of a batch cost, part by part.

A multiplication and an addition count as two. Matrix products alone are counted (as torch's counter does): what works element by
element is bounded by memory, not by arithmetic. The default heads, torsional and torsion, in the joint phase.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from foundation.batch import Condition
from foundation.encoders.sequence import VOCABULARY
from foundation.nn.contacts import NUM_KINDS
from foundation.nn.parity import Width
from foundation.objectives.polyconfm.auxiliary import MEANS, num_hidden
from foundation.objectives.polyconfm.config import PolyConFMConfig

NUM_RADIAL, PAIR_HIDDEN = 24, 32  # UnitGeometry
NUM_CONTACT_RADIAL, NUM_CONTACT_CHANNELS = 12, 4  # Contacts
NUM_FREQUENCIES = 32  # FourierFeatures, sines and cosines


@dataclass(frozen=True)
class Flops:
    """Operations forward and backward."""

    forward: float = 0.0
    backward: float = 0.0

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, factor: float) -> Flops:
        return Flops(self.forward * factor, self.backward * factor)

    @property
    def total(self) -> float:
        return self.forward + self.backward


@dataclass(frozen=True)
class Sizes:
    """What of a batch decides the operations: numbers of rows, padded lengths.

    Attributes:
        chains, units, masked: of the batch; masked units are predicted.
        longest, longest_visible: units of the longest chain, and most visible units of a chain.
        atoms: of the largest unit, A.
        graph_atoms: of all unit graphs together.
        tokens: of the longest P-SMILES.
        torsions: of the unit that has most, at least 1.
        hidden_tokens: of all P-SMILES together, that the auxiliary term predicts.
    """

    chains: int
    units: int
    masked: int
    longest: int
    longest_visible: int
    atoms: int
    graph_atoms: int
    tokens: int
    torsions: int
    hidden_tokens: int

    @staticmethod
    def of(condition: Condition, mask: Tensor) -> Sizes:
        """mask: (U,) bool, units to predict."""
        visible = condition.unit_chain[~mask].bincount(minlength=condition.num_chains)
        return Sizes(
            chains=condition.num_chains,
            units=len(mask),
            masked=int(mask.sum()),
            longest=int(condition.num_units.max()),
            longest_visible=int(visible.max()),
            atoms=condition.max_atoms,
            graph_atoms=len(condition.atom_feat),
            tokens=int(condition.token_ptr.diff().max()),
            torsions=max(int(condition.torsion_ptr.diff().max()), 1),
            hidden_tokens=int(num_hidden(condition.token_ptr.diff()).sum()),
        )


def step_flops(config: PolyConFMConfig, sizes: Sizes) -> dict[str, Flops]:
    """Operations of loss and gradient, by part of the model.

    Raises:
        ValueError: heads or a phase that no formula covers.
    """
    if (config.local_head, config.orientation_head, config.phase) != ("torsional", "torsion", "joint"):
        raise ValueError("operations are counted for the torsional and torsion heads in the joint phase")
    width = Width.of(config.width)
    s, heads = sizes, config.num_heads
    reg = config.num_registers

    trained = max(s.units - s.masked, 1)  # one unit at least has a gradient

    def encoded(units: float) -> Flops:
        return _unit_encoder(width, units, s.atoms, config.unit_layers, heads) + _graded(units, width, width)

    return {
        "1-D and 2-D encoders": _know(config, width, s),
        # masked units are encoded for the orientation head, without gradient
        "3-D encoder": encoded(trained)
        + (Flops(encoded(s.units - trained).forward) if config.orientation_stop_gradient else encoded(s.units - trained)),
        "trunk": (
            _blocks(s.chains, s.longest_visible + reg, width, config.trunk_layers)
            + _graded(s.units, width, width)
            + _blocks(s.chains, s.longest + reg, width, config.trunk_layers)
        ),
        "local head": _local_head(config, width, s),
        # the context that the orientation head reads comes from the trunk with every unit visible, without gradient unless another needs it
        "context of the orientation head": Flops(_blocks(s.chains, s.longest + reg, width, config.trunk_layers).forward)
        if config.orientation_stop_gradient and not config.statistics_weight
        else _blocks(s.chains, s.longest + reg, width, config.trunk_layers),
        "orientation head": _orientation_head(config, width, s),
        "auxiliary terms": _auxiliary(config, width, s),
    }


def _linear(rows: float, source: int, target: int, *, constant_input: bool = False) -> Flops:
    """One gradient for the weight, one for the input unless the input is data."""
    forward = 2.0 * rows * source * target
    return Flops(forward, forward if constant_input else 2 * forward)


def _graded(rows: float, source: Width, target: Width, *, constant_input: bool = False) -> Flops:
    return _linear(rows, source.even, target.even, constant_input=constant_input) + _linear(
        rows, source.odd, target.odd, constant_input=constant_input
    )


def _graded_mlp(rows: float, source: Width, target: Width, expand: int) -> Flops:
    even, odd = expand * target.even, expand * target.odd
    inner = _linear(rows, source.even, even + odd) + _linear(rows, source.odd, 2 * odd)
    return inner + _linear(rows, even + odd, target.even) + _linear(rows, odd, target.odd)


def _odd_readout(rows: float, source: Width, width: Width) -> Flops:
    hidden = 2 * width.odd
    inner = _linear(rows, source.odd, hidden) + _linear(rows, source.even, hidden)
    return inner + _linear(rows, hidden, width.odd) + _linear(rows, width.odd, 1)


def _attention(rows: float, length: float, channels: int, *, learned_bias: bool = False) -> Flops:
    """Logits and mixture. The gradient of fused attention computes the logits once more; a learned bias rules the fused one out."""
    forward = 4.0 * rows * length**2 * channels
    return Flops(forward, (2.0 if learned_bias else 2.5) * forward)


def _blocks(rows: float, length: float, width: Width, layers: int, condition: Width | None = None, *, learned_bias: bool = False) -> Flops:
    """A stack of transformer blocks; the condition is one a row."""
    tokens = rows * length
    attention = _attention(rows, length, sum(width), learned_bias=learned_bias)
    block = _graded(tokens, width, Width(3 * width.even, 3 * width.odd)) + attention
    block = block + _graded(tokens, width, width) + _graded_mlp(tokens, width, width, 4)
    if condition is not None:
        block = block + _linear(rows, condition.even, 6 * width.even + 4 * width.odd) + _linear(rows, condition.odd, 2 * width.odd)
    return block * layers


def _know(config: PolyConFMConfig, width: Width, s: Sizes) -> Flops:
    w = width.even
    graph = (_linear(s.graph_atoms, w, 2 * w) + _linear(s.graph_atoms, 2 * w, w)) * config.graph_layers
    classes = _linear(s.chains, 2 * w, w) * 2 + _linear(s.graph_atoms, w, width.odd)
    neighbours = Flops(2 * 2.0 * s.chains * s.atoms**3)  # bonds, two bonds, three bonds apart
    return graph + _sequence(config, w, s) + classes + neighbours


def _sequence(config: PolyConFMConfig, w: int, s: Sizes) -> Flops:
    rows = s.chains * s.tokens
    layer = _linear(rows, w, 3 * w) + _attention(s.chains, s.tokens, w) + _linear(rows, w, w) + _linear(rows, w, 4 * w)
    return (layer + _linear(rows, 4 * w, w)) * config.sequence_layers


def _geometry(width: Width, rows: float, atoms: int, heads: int) -> Flops:
    """Tokens of the atoms and bias of their pairs."""
    pairs = rows * atoms**2
    place = _linear(rows * atoms, width.even, width.even) + _graded(rows * atoms, Width(2, 2), width, constant_input=True)
    return place + _linear(pairs, NUM_RADIAL, PAIR_HIDDEN, constant_input=True) + _linear(pairs, PAIR_HIDDEN, heads)


def _unit_encoder(width: Width, rows: float, atoms: int, layers: int, heads: int) -> Flops:
    out = _graded(rows, Width(3 * width.even, 3 * width.odd), width)
    return _geometry(width, rows, atoms, heads) + _blocks(rows, atoms, width, layers, learned_bias=True) + out


def _noise(rows: float, width: Width) -> Flops:
    return _linear(rows, NUM_FREQUENCIES, width.even, constant_input=True) + _linear(rows, width.even, width.even)


def _contacts(rows: float, atoms: int, pairs: float, turns: int, width: Width, *, constant_atoms: bool) -> Flops:
    """Sums over pairs, and how fast their distances change (which needs no gradient)."""
    shares = _linear(rows * atoms, width.even, NUM_CONTACT_CHANNELS, constant_input=constant_atoms) * 2
    kinds = _linear(rows * pairs, NUM_KINDS, NUM_CONTACT_CHANNELS, constant_input=True)
    sums = 2.0 * rows * NUM_CONTACT_RADIAL * pairs * turns * 2 * NUM_CONTACT_CHANNELS
    return shares + kinds + Flops(sums + 2.0 * rows * turns * pairs * 6, sums)


def _local_head(config: PolyConFMConfig, width: Width, s: Sizes) -> Flops:
    extra = config.num_harmonics + NUM_CONTACT_RADIAL * NUM_CONTACT_CHANNELS
    source = Width(4 * width.even + extra, 4 * width.odd + extra)
    given = _noise(s.masked, width) + _graded(s.masked, width, width)
    blocks = _blocks(s.masked, s.atoms, width, config.local_layers, width, learned_bias=True)
    contacts = _contacts(s.masked, s.atoms, s.atoms * (s.atoms - 1) / 2, s.torsions, width, constant_atoms=False)
    readout = _odd_readout(s.masked * s.torsions, source, width)
    return _geometry(width, s.masked, s.atoms, config.num_heads) + given + blocks + contacts + readout


def _orientation_head(config: PolyConFMConfig, width: Width, s: Sizes) -> Flops:
    extra = config.num_harmonics + 2 * NUM_CONTACT_RADIAL * NUM_CONTACT_CHANNELS
    sides = Width(2 * width.even + extra, 2 * width.odd + extra)
    constant = config.orientation_stop_gradient
    contacts = _contacts(s.units, s.atoms, s.atoms**2, 1, width, constant_atoms=constant)
    contacts += _contacts(s.units, s.atoms, s.atoms**2, 2, width, constant_atoms=constant)
    blocks = _blocks(s.chains, s.longest, width, config.orientation_layers, Width(width.even, 0))
    readout = _odd_readout(s.units, Width(width.even + sides.even, width.odd + sides.odd), width)
    return contacts + _graded_mlp(s.units, sides, width, 2) + _noise(s.chains, width) + blocks + readout


def _auxiliary(config: PolyConFMConfig, width: Width, s: Sizes) -> Flops:
    total, w = Flops(), width.even
    if config.token_weight:
        total += _sequence(config, w, s) + _linear(s.hidden_tokens, w, len(VOCABULARY))
    if config.agreement_weight:
        total += (_linear(s.chains, w, w) + _linear(s.chains, w, s.chains)) * 3
    if config.statistics_weight:
        total += _linear(s.chains, w, len(MEANS))
    return total
