"""Everything that decides the bytes of a shard set, in one frozen model with a digest."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from data_shards.errors import InputError

FLAGS = {"num_conformations": "--conformers", "samples_per_shard": "--shard-size", "time_limit_sec": "--time-limit"}


class QualityLimits(BaseModel):
    """When a conformation is dropped: `conformers/quality.py` says what each limit means."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    heavy_clash: float = Field(0.75, gt=0, le=1, description="share of the sum of van der Waals radii that two heavy atoms must keep")
    hydrogen_clash: float = Field(0.65, gt=0, le=1, description="the same where one of the two is a hydrogen")
    extra_bond: float = Field(1.1, gt=0, le=2, description="share of the sum of covalent radii that two atoms without a bond must keep")
    bond_error_ang: float | None = Field(None, gt=0, description="largest error of a heavy bond; none: 0.05 against the shapes, 0.35 else")
    hydrogen_bond_error_ang: float = Field(0.2, gt=0, description="largest error of a bond to hydrogen, against covalent radii")
    angle_error_deg: float = Field(25.0, gt=0, le=180, description="largest error of an angle between heavy atoms, against the shapes")
    max_ring_size: int = Field(12, ge=0, le=100, description="rings up to this size must not be pierced by a bond; 0: not checked")


class MdSettings(BaseModel):
    """How `--engine md` samples: `conformers/dynamics.py`."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BuildRecipe(BaseModel):
    """What turns a table of P-SMILES into shards. The same recipe and the same rows give the same bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_units: int = Field(20, ge=1, le=100_000, description="repeat units per chain, counted as the P-SMILES is written")
    num_conformations: int = Field(4, ge=1, le=10_000, description="conformations per chain")
    tacticity: Literal["isotactic", "syndiotactic", "atactic"] = Field("atactic", description="rule for stereocentres left open")
    engine: Literal["grow"] = Field("grow", description="chain builder")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of tacticity and conformations")
    num_fragments: int = Field(16, ge=1, le=1_000, description="ETKDG + MMFF94 conformers of the unit fragment that chains are grown from")
    max_atoms_per_unit: int = Field(100, ge=2, le=10_000, description="heavy atoms per canonical unit, stars included")
    time_limit_sec: float = Field(300.0, gt=0, le=86_400, description="wall-clock limit per polymer, seconds")
    samples_per_shard: int = Field(256, ge=1, le=1_000_000, description="polymers per shard")
    val_fraction: float = Field(0.05, ge=0, lt=1, description="share of polymer groups for validation")
    test_fraction: float = Field(0.05, ge=0, lt=1, description="share of polymer groups for test")
    split_seed: int = Field(0, ge=0, lt=2**31, description="seed of the split")
    holdout: tuple[str, ...] = Field((), description="polymer groups that always go to test")

    @field_validator("holdout")
    @classmethod
    def _sorted_once(cls, groups: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(groups)))

    @model_validator(mode="after")
    def _leaves_room_for_training(self) -> BuildRecipe:
        if self.val_fraction + self.test_fraction >= 1:
            total = self.val_fraction + self.test_fraction
            raise ValueError(f"val_fraction + test_fraction = {total:g} must be below 1; nothing would be left to train on")
        return self

    @property
    def digest(self) -> str:
        """sha256 of the recipe as canonical JSON."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def make_recipe(**values: Any) -> BuildRecipe:
    """A recipe from command line values.

    Args:
        values: fields of `BuildRecipe`; the ones left out take their defaults.

    Raises:
        InputError: one sentence that names the value, its bound and the flag to change.
    """
    try:
        return BuildRecipe(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        if not name:
            raise InputError(first["msg"].removeprefix("Value error, ")) from None
        flag = FLAGS.get(name, "--" + name.replace("_", "-"))
        bound = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        raise InputError(f"{name} {first['input']!r} must be {bound}; change {flag}") from None
