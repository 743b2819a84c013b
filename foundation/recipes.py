"""Named runs. A recipe is a function that returns a whole configuration; a variant is another function."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from foundation.config import DataConfig, RunConfig, TrainConfig
from foundation.errors import ConfigError
from foundation.objectives.ditmc.config import DiTMCConfig
from foundation.objectives.polyconfm.config import PolyConFMConfig


def polyconfm_tiny() -> RunConfig:
    """About 1.4 M parameters: the demo, tests, a laptop."""
    return RunConfig(
        recipe="polyconfm_tiny",
        objective=PolyConFMConfig.tiny(),
        data=DataConfig(token_budget=2048),
        train=TrainConfig(lr=2e-3),
    )


def polyconfm_small() -> RunConfig:
    """About 9 M parameters: one GPU, or a patient CPU."""
    return RunConfig(
        recipe="polyconfm_small",
        objective=PolyConFMConfig.small(),
        data=DataConfig(token_budget=16_384, num_workers=2),
        train=TrainConfig(lr=5e-4, num_steps=50_000, checkpoint_every=1000, validate_every=1000),
    )


def polyconfm_base() -> RunConfig:
    """About 140 M parameters, the size of the paper."""
    return RunConfig(
        recipe="polyconfm_base",
        objective=PolyConFMConfig.base(),
        data=DataConfig(token_budget=32_768, num_workers=4),
        train=TrainConfig(
            lr=2e-4,
            num_steps=200_000,
            micro_batches_per_step=16,
            zero_stage=2,
            precision="bf16",
            checkpoint_every=2000,
            validate_every=2000,
        ),
    )


def polyconfm_large() -> RunConfig:
    """About 520 M parameters."""
    return RunConfig(
        recipe="polyconfm_large",
        objective=PolyConFMConfig.large(),
        data=DataConfig(token_budget=32_768, num_workers=4),
        train=TrainConfig(
            lr=1e-4,
            num_steps=200_000,
            micro_batches_per_step=32,
            zero_stage=3,
            precision="bf16",
            checkpoint_every=2000,
            validate_every=2000,
        ),
    )


def ditmc_tiny() -> RunConfig:
    """About 1 M parameters: flow matching of chains, on a laptop."""
    return RunConfig(
        recipe="ditmc_tiny",
        objective=DiTMCConfig.tiny(),
        data=DataConfig(token_budget=2048),
        train=TrainConfig(lr=1e-3),
    )


def ditmc_base() -> RunConfig:
    """About 9.5 M parameters, the paper's B, with relative positions."""
    return RunConfig(
        recipe="ditmc_base",
        objective=DiTMCConfig.base(),
        data=DataConfig(token_budget=8192, num_workers=2),
        train=TrainConfig(lr=3e-4, num_steps=100_000, checkpoint_every=1000, validate_every=1000),
    )


def ditmc_pe3() -> RunConfig:
    """About 8.5 M parameters, equivariant; the size of ditmc_base."""
    return RunConfig(
        recipe="ditmc_pe3",
        objective=DiTMCConfig(scheme="pe3", width=144, num_heads=6),
        data=DataConfig(token_budget=8192, num_workers=2),
        train=TrainConfig(lr=3e-4, num_steps=100_000, checkpoint_every=1000, validate_every=1000),
    )


def ditmc_large() -> RunConfig:
    """About 28 M parameters, the paper's L."""
    return RunConfig(
        recipe="ditmc_large",
        objective=DiTMCConfig.large(),
        data=DataConfig(token_budget=8192, num_workers=4),
        train=TrainConfig(
            lr=3e-4, num_steps=200_000, micro_batches_per_step=4, precision="bf16", checkpoint_every=2000, validate_every=2000
        ),
    )


RECIPES: dict[str, Callable[[], RunConfig]] = {
    "polyconfm_tiny": polyconfm_tiny,
    "polyconfm_small": polyconfm_small,
    "polyconfm_base": polyconfm_base,
    "polyconfm_large": polyconfm_large,
    "ditmc_tiny": ditmc_tiny,
    "ditmc_base": ditmc_base,
    "ditmc_pe3": ditmc_pe3,
    "ditmc_large": ditmc_large,
}


def get_recipe(name: str) -> RunConfig:
    """The configuration of a recipe.

    Raises:
        ConfigError: unknown name.
    """
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.0)
        raise ConfigError(f"unknown recipe {name!r}; did you mean {close[0]!r}? The recipes are {', '.join(RECIPES)}")
    return RECIPES[name]()
