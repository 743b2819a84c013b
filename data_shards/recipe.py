"""Everything that decides the bytes of a shard set, in one frozen model with a digest."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from data_shards.errors import InputError
from data_shards.schema import MOLECULE_ENGINES

FLAGS = {"num_conformations": "--conformers", "samples_per_shard": "--shard-size", "time_limit_sec": "--time-limit"}


class QualityLimits(BaseModel):
    """When a conformation is dropped: `conformers/quality.py` says what each limit means."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    heavy_clash: float = Field(0.75, gt=0, le=1, description="share of the sum of van der Waals radii that two heavy atoms must keep")
    hydrogen_clash: float = Field(0.65, gt=0, le=1, description="the same where one of the two is a hydrogen")
    hydrogen_bond_ang: float = Field(1.5, ge=0, description="least distance of the hydrogen of an N-H, O-H, F-H or S-H to N, O or F")
    extra_bond: float = Field(1.1, gt=0, le=2, description="share of the sum of covalent radii that two atoms without a bond must keep")
    bond_error_ang: float | None = Field(None, gt=0, description="largest error of a heavy bond; none: 0.05 against the shapes, 0.35 else")
    hydrogen_bond_error_ang: float = Field(0.2, gt=0, description="largest error of a bond to hydrogen, against covalent radii")
    angle_error_deg: float = Field(25.0, gt=0, le=180, description="largest error of an angle between heavy atoms, against the shapes")
    max_ring_size: int = Field(12, ge=0, le=100, description="rings up to this size must not be pierced by a bond; 0: not checked")


class MdSettings(BaseModel):
    """How `--engine md` samples: `conformers/dynamics.py`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: Literal["theta", "vacuum"] = Field(
        "theta", description="theta: near neighbours along the chain in full, far atoms repel; vacuum: all"
    )
    reach_bonds: int = Field(4, ge=1, le=1_000, description="theta: bonds along the backbone within which atoms interact in full")
    far_repulsion: bool = Field(True, description="theta: atoms beyond the reach repel each other; false: an ideal chain, which may cross")
    temperature_kelvin: float = Field(400.0, gt=0, le=2_000, description="temperature of the conformations")
    timestep_fs: float = Field(2.0, gt=0, le=4, description="time step; no constraints")
    hydrogen_mass_da: float = Field(4.0, ge=1, le=12, description="mass of hydrogens: heavy ones allow the time step, populations stay")
    friction_per_ps: float = Field(2.0, gt=0, le=1_000, description="friction of the Langevin thermostat")
    minimise_iterations: int = Field(200, ge=1, le=100_000, description="most iterations of the minimisation of a grown chain")
    anneal_kelvin: float = Field(600.0, gt=0, le=1_000, description="a chain is cooled from here to its temperature, unless that is higher")
    anneal_ps: float = Field(2.0, ge=0, le=100_000, description="how long that takes; 0: not at all")
    run_ps: float = Field(3.0, gt=0, le=1_000_000, description="run at the temperature before the first conformation of a chain is taken")
    torsion_moves_per_ps: float = Field(0.0, ge=0, le=1e6, description="Metropolis turns of rotatable bonds tried per ps, cooling included")
    max_spacing_ps: float = Field(0.0, ge=0, description="a chain gives more conformations, two autocorrelation times apart, up to this")
    platform: Literal["CPU", "Reference", "CUDA", "OpenCL", "auto"] = Field(
        "CPU", description="of OpenMM; CPU and Reference give the same bits again; auto: the fastest there is"
    )


class BuildRecipe(BaseModel):
    """What turns a table of P-SMILES into shards. The same recipe and the same rows give the same bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_units: int = Field(20, ge=1, le=100_000, description="repeat units per chain, counted as the P-SMILES is written")
    num_conformations: int = Field(4, ge=1, le=10_000, description="conformations per chain")
    tacticity: Literal["isotactic", "syndiotactic", "atactic"] = Field("atactic", description="rule for stereocentres left open")
    engine: Literal["grow", "md", "import", "etkdg", "record"] = Field(
        "grow", description="chain builder; import: the source brings its own chains; molecules: etkdg embeds them, record has them"
    )
    md: MdSettings | None = Field(None, description="settings of the md engine, none for the others")
    relax: bool = Field(False, description="minimise every chain in MMFF94s; the unrelaxed one is stored beside it")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of tacticity and conformations")
    num_fragments: int = Field(16, ge=1, le=1_000, description="ETKDG + MMFF94 conformers of the unit fragment that chains are grown from")
    max_atoms_per_unit: int = Field(100, ge=2, le=10_000, description="heavy atoms per canonical unit, stars included")
    time_limit_sec: float = Field(300.0, gt=0, le=86_400, description="wall-clock limit per polymer, seconds")
    quality: QualityLimits = Field(QualityLimits(), description="when a conformation is dropped")
    samples_per_shard: int = Field(256, ge=1, le=1_000_000, description="polymers planned per shard")
    val_fraction: float = Field(0.05, ge=0, lt=1, description="share of polymers for validation")
    test_fraction: float = Field(0.05, ge=0, lt=1, description="share of polymers for test")
    split_seed: int = Field(0, ge=0, lt=2**31, description="seed of the split")
    to_test: tuple[str, ...] = Field((), description="polymers (groups) that always go to test")
    hold_out: tuple[str, ...] = Field((), description="polymers (groups) that go into no shard at all")

    @field_validator("to_test", "hold_out")
    @classmethod
    def _sorted_once(cls, groups: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(groups)))

    @model_validator(mode="after")
    def _leaves_room_for_training(self) -> BuildRecipe:
        if self.val_fraction + self.test_fraction >= 1:
            total = self.val_fraction + self.test_fraction
            raise ValueError(f"val_fraction + test_fraction = {total:g} must be below 1; nothing would be left to train on")
        return self

    @model_validator(mode="after")
    def _md_has_settings(self) -> BuildRecipe:
        if (self.engine == "md") != (self.md is not None):
            raise ValueError("engine md needs its settings and no other engine has any; change --engine or --md")
        return self

    @property
    def of_molecules(self) -> bool:
        """Samples are molecules, not chains of polymers."""
        return self.engine in MOLECULE_ENGINES

    @property
    def digest(self) -> str:
        """sha256 of the recipe as canonical JSON."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def make_recipe(**values: Any) -> BuildRecipe:
    """A recipe from command line values.

    Args:
        values: fields of `BuildRecipe`; the ones left out take their defaults. `md` and `quality` are mappings of their own fields.

    Raises:
        InputError: one sentence that names the value, its bound and the flag to change.
    """
    if values.get("engine") == "md":
        values["md"] = values.get("md") or {}
    try:
        return BuildRecipe(**values)
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"]]
        name = ".".join(path)
        if not name:
            raise InputError(first["msg"].removeprefix("Value error, ")) from None
        group = GROUPS.get(path[0])
        flag = FLAGS.get(name, "--" + path[0].replace("_", "-"))
        if group and first["type"] == "extra_forbidden":
            raise InputError(f"{name} is unknown; {flag} takes {', '.join(group.model_fields)}") from None
        bound = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        raise InputError(f"{name} {first['input']!r} must be {bound}; change {flag}") from None


GROUPS: dict[str, type[BaseModel]] = {"md": MdSettings, "quality": QualityLimits}


def read_settings(group: str, assignments: list[str]) -> dict[str, Any]:
    """`name=value` pairs of --md and --quality as a mapping; values are checked by `make_recipe`.

    Raises:
        InputError: no equals sign.
    """
    found: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            fields = ", ".join(GROUPS[group].model_fields)
            raise InputError(f"--{group} {assignment!r} must be name=value, with one of {fields}")
        found[name.strip()] = text.strip()
    return found
