"""Configuration of PolyConFM. Presets give the sizes; every field can be overridden as ``objective.<field>=value``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

WINDOW = 64  # units of a chain that are sampled at once


class PolyConFMConfig(BaseModel):
    """One objective: encoders, masked-autoregressive trunk, one local head, one orientation head."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    # fields that change no loss: a run that is continued may change them
    SAMPLING_FIELDS: ClassVar[frozenset[str]] = frozenset(
        (
            "ar_steps",
            "local_steps",
            "orientation_steps",
            "guidance",
            "project_shared_bond",
            "clash_rounds",
            "clash_redraws",
            "clash_proposals",
        )
    )
    # fields that runs of before their time do not name, and what those did
    WHERE_ABSENT: ClassVar[Mapping[str, float]] = dict.fromkeys(
        ("token_weight", "agreement_weight", "statistics_weight", "descriptor_weight", "level_weight"), 0.0
    )

    name: Literal["polyconfm"] = "polyconfm"
    width: int = Field(96, ge=32, le=65_536, description="channels of every token; a quarter of them is odd under reflection")
    num_heads: int = Field(4, ge=1, le=1024, description="attention heads")
    sequence_layers: int = Field(1, ge=1, le=1024, description="layers of the 1-D P-SMILES transformer")
    graph_layers: int = Field(3, ge=1, le=1024, description="layers of the 2-D GINE")
    unit_layers: int = Field(2, ge=1, le=1024, description="layers of the 3-D unit encoder")
    trunk_layers: int = Field(2, ge=1, le=1024, description="layers of the trunk's encoder, and of its decoder")
    local_layers: int = Field(2, ge=1, le=1024, description="layers of the local conformation head")
    orientation_layers: int = Field(2, ge=1, le=1024, description="layers of the orientation head")
    num_registers: int = Field(8, ge=1, le=1024, description="tokens a chain that carry the class condition and scratch space")
    local_head: Literal["torsional", "cartesian", "ditmc"] = Field("torsional", description="how unit shapes are generated")
    orientation_head: Literal["torsion", "so3"] = Field("torsion", description="how units are put together")
    phase: Literal["joint", "local", "orientation"] = Field(
        "joint", description="joint: both heads at once; local, then orientation with --init-from: in sequence, trunk frozen in the second"
    )
    orientation_stop_gradient: bool = Field(True, description="joint phase: the orientation loss does not train the trunk")
    orientation_weight: float = Field(1.0, ge=0, description="weight of the orientation loss in the joint phase")
    token_weight: float = Field(0.0, ge=0, description="weight of the cross-entropy of hidden P-SMILES tokens; 0 = off")
    agreement_weight: float = Field(0.0, ge=0, description="weight of the agreement of the 1-D, 2-D and 3-D views of a chain; 0 = off")
    statistics_weight: float = Field(0.0, ge=0, description="weight of size and stiffness read from the chain's embedding; 0 = off")
    descriptor_weight: float = Field(0.0, ge=0, description="weight of RDKit descriptors read from each view of a chain; 0 = off")
    level_weight: float = Field(0.0, ge=0, description="weight of tight-binding levels read from each view of a chain; 0 = off")
    label_dropout: float = Field(0.1, ge=0, le=1, description="probability that a chain's class condition is replaced by the null class")
    full_mask_fraction: float = Field(0.1, ge=0, le=1, description="fraction of chains trained with every unit masked")
    low_mask_fraction: float = Field(0.2, ge=0, le=1, description="fraction of chains trained with 15 to 50 % of units masked")
    mask_ratio: float | None = Field(None, gt=0, le=1, description="fraction of units masked in every chain; null = the mixture above")
    torsion_sigma_min_rad: float = Field(0.0314, gt=0, description="smallest noise on angles, rad")
    torsion_sigma_max_rad: float = Field(3.14159, gt=0, description="largest noise on angles, rad; the prior is uniform")
    num_harmonics: int = Field(8, ge=1, le=1024, description="multiples of an angle that the torsion heads see")
    bond_weight: float = Field(1.0, ge=0, description="cartesian head: weight of the squared bond and 1-3 distance error, 1 / angstrom^2")
    ar_steps: int = Field(8, ge=1, description="autoregressive steps at sampling")
    local_steps: int = Field(10, ge=1, description="solver steps of the local head")
    orientation_steps: int = Field(10, ge=1, description="solver steps of the orientation head")
    guidance: float = Field(1.0, ge=0, description="classifier-free guidance scale of the local head; 1 = off")
    project_shared_bond: bool = Field(True, description="so3 head: move rotations to the nearest that satisfy both overlaps")
    clash_rounds: int = Field(100, ge=0, description="rounds of redrawing link dihedrals between clashing units; 0 = off")
    clash_redraws: int = Field(8, ge=0, description="times that units whose clash no link dihedral removes are drawn again; 0 = off")
    clash_proposals: int = Field(
        6, ge=1, description="joint draws for clashing junctions that have too few of their kind to take angles from"
    )

    @model_validator(mode="after")
    def _relations(self) -> Self:
        if self.width % (8 * self.num_heads):
            raise ValueError(f"width {self.width} must be a multiple of 8 x num_heads = {8 * self.num_heads}")
        if self.torsion_sigma_min_rad >= self.torsion_sigma_max_rad:
            raise ValueError(f"torsion_sigma_min_rad {self.torsion_sigma_min_rad} must be below torsion_sigma_max_rad")
        if self.full_mask_fraction + self.low_mask_fraction > 1:
            raise ValueError("full_mask_fraction + low_mask_fraction must be at most 1")
        return self

    @property
    def units_at_once(self) -> int | None:
        """Units of a chain that sampling holds at a time; None: all, with rotations that need not satisfy both overlaps."""
        return WINDOW if self.orientation_head == "torsion" or self.project_shared_bond else None

    @property
    def targets(self) -> tuple[str, ...]:
        """What training reads of the repeat unit to learn it: fields of Batch."""
        weights = {"descriptors": self.descriptor_weight, "levels": self.level_weight}
        return tuple(name for name, weight in weights.items() if weight > 0 and self.phase != "orientation")

    @classmethod
    def tiny(cls) -> Self:
        """About 1.4 M parameters: demo and tests."""
        return cls()

    @classmethod
    def small(cls) -> Self:
        """About 9 M parameters."""
        return cls(
            width=192, num_heads=8, sequence_layers=3, graph_layers=4, unit_layers=4, trunk_layers=3, local_layers=4, orientation_layers=4
        )

    @classmethod
    def base(cls) -> Self:
        """About 140 M parameters, the size of the paper."""
        return cls(
            width=576, num_heads=12, sequence_layers=6, graph_layers=5, unit_layers=8, trunk_layers=6, local_layers=6, orientation_layers=6
        )

    @classmethod
    def large(cls) -> Self:
        """About 520 M parameters."""
        return cls(
            width=896,
            num_heads=14,
            sequence_layers=8,
            graph_layers=6,
            unit_layers=12,
            trunk_layers=10,
            local_layers=10,
            orientation_layers=10,
        )
