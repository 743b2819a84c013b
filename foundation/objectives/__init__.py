"""The objectives. Adding one is a folder and a line in CONFIGS and OBJECTIVES."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

# name -> (module, configuration class, model class); modules are imported when asked for, so that commands start quickly
OBJECTIVES: dict[str, tuple[str, str, str]] = {
    "polyconfm": ("foundation.objectives.polyconfm", "PolyConFMConfig", "PolyConFM"),
    "ditmc": ("foundation.objectives.ditmc", "DiTMCConfig", "DiTMC"),
}


def build_objective(config: Any) -> nn.Module:
    """The model of a configuration (foundation/objectives/base.py says what it can do)."""
    module, _, model = OBJECTIVES[config.name]
    built: nn.Module = getattr(import_module(f"{module}.model"), model)(config)
    return built
