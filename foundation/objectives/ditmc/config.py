"""Configuration of DiTMC. Presets give the sizes; every field can be overridden as ``objective.<field>=value``."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class DiTMCConfig(BaseModel):
    """One network that is told a molecular graph and a time and says where the atoms are going."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    # fields that change no loss: a run that is continued may change them
    SAMPLING_FIELDS: ClassVar[frozenset[str]] = frozenset(("solver", "steps", "tolerance", "guidance", "pairs_at_once"))

    name: Literal["ditmc"] = "ditmc"
    scheme: Literal["ape", "rpe", "pe3"] = Field("rpe", description="where atoms are: absolute, relative, or relative and equivariant")
    condition: Literal["bond_pair", "all_pair"] = Field(
        "all_pair", description="pairs that the graph speaks of: bonded ones, or all by bonds between"
    )
    width: int = Field(256, ge=8, le=65_536, description="channels of every token")
    num_heads: int = Field(8, ge=1, le=1024, description="attention heads")
    num_layers: int = Field(6, ge=1, le=1024, description="transformer blocks")
    graph_layers: int = Field(2, ge=1, le=1024, description="message-passing layers over bonds")
    units: int = Field(0, ge=0, le=10**6, description="repeat units of a training piece, cut from chains at random; 0 = whole chains")
    prior: Literal["harmonic", "gaussian"] = Field(
        "harmonic", description="where the flow begins: bonds as springs, or every atom by itself"
    )
    align: bool = Field(True, description="turn what is drawn from the prior onto the data (Kabsch) before they are joined")
    noise: Literal["bridge", "none", "const"] = Field(
        "bridge", description="noise on the path; const is the published code's, whose sampler contracts"
    )
    noise_ang: float = Field(0.5, ge=0, description="size of that noise, angstrom")
    predict: Literal["clean", "velocity"] = Field("clean", description="what the network says: where atoms end, or how fast they move")
    times: Literal["uniform", "late"] = Field("uniform", description="times of training; late: 98 % from Beta(1.9, 1)")
    drop: float = Field(0.0, ge=0, le=1, description="share of molecules of which the network is told nothing but their size, for guidance")
    solver: Literal["euler", "heun", "adaptive"] = Field("euler", description="how the flow is followed")
    steps: int = Field(50, ge=1, le=100_000, description="solver steps")
    tolerance: float = Field(1e-3, gt=0, description="adaptive solver: error of a step, absolute in angstrom and relative")
    guidance: float = Field(1.0, ge=0, description="classifier-free guidance; 1 = as trained")
    pairs_at_once: int = Field(4_000_000, ge=1, description="pair channels that are held at a time, molecules x atoms x atoms x width")

    @model_validator(mode="after")
    def _relations(self) -> Self:
        if self.width % (4 * self.num_heads):
            raise ValueError(f"width {self.width} must be a multiple of 4 x num_heads = {4 * self.num_heads}")
        if self.guidance != 1 and self.drop == 0:
            raise ValueError(
                f"guidance {self.guidance:g} needs a network that was also told nothing; train with drop=0.1, or set guidance=1"
            )
        if self.predict == "velocity" and self.noise == "const":
            raise ValueError(
                "noise const is a fault of clean prediction that is kept to be measured; with predict=velocity use bridge or none"
            )
        return self

    @property
    def reads_molecules(self) -> bool:
        """Training reads molecules that are no polymers too."""
        return True

    @classmethod
    def tiny(cls) -> Self:
        """About 1 M parameters: tests, a laptop."""
        return cls(width=96, num_heads=4, num_layers=4)

    @classmethod
    def base(cls) -> Self:
        """About 9.5 M parameters, the paper's B."""
        return cls()

    @classmethod
    def large(cls) -> Self:
        """About 28 M parameters, the paper's L."""
        return cls(width=384, num_heads=12, num_layers=8, graph_layers=3)
