"""List the experiments: ``python -m benchmarks.experiments``."""

from __future__ import annotations

from importlib import import_module

NAMES = (
    "unit_reconstruction",
    "frame_assembly",
    "length_scaling",
    "masking_ratio",
    "guidance",
    "head_ablation",
    "property_input",
    "sampling_steps",
    "auxiliary_losses",
)


def main() -> None:
    """One line an experiment."""
    print("python -m benchmarks.experiments.NAME --checkpoint runs/y --shards shards/x --out runs/experiments/NAME\n")
    for name in NAMES:
        print(f"{name:<20} {import_module(f'benchmarks.experiments.{name}').EXPERIMENT.line}")


if __name__ == "__main__":
    main()
