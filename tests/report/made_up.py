"""A run folder with everything a report can show, small and made up."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

HOSTILE = '<img src=x onerror="window.hacked=1">&amp;\'</script><script>window.hacked=1</script><!--\ud800\0'
METHODS = ("model", "reference", "grow engine", "random links", "train histogram", "extended")


def estimate(value: float, half: float = 0.1, polymers: int = 12) -> dict[str, Any]:
    """As results.json has it."""
    return {"value": value, "low": value - half, "high": value + half, "num_polymers": polymers}


def results() -> dict[str, Any]:
    """results.json with a part and all distributions."""
    rng = np.random.default_rng(0)
    metrics = {
        "link_dihedral_jsd_bits": {"unit": "bit", "protocol": "Jensen-Shannon", "better": "low", "methods": by_method(0.2, 0.9)},
        "bond_within_mmff_fraction": {"unit": "fraction", "protocol": "bonds", "better": "high", "methods": by_method(0.4, 0.9)},
        "radius_of_gyration_ang": {"unit": "angstrom", "protocol": "size", "better": "reference", "methods": by_method(12.0, 15.0)},
        "made_up_metric": {"unit": "", "protocol": "nothing", "better": "low", "methods": {"model": estimate(1.0)}},
    }
    attempts = {method: {"attempted": 24, "failed": 1, "reasons": {"no-chain": 1}} for method in METHODS}
    part = {"protocol": {"num_polymers": 12, "interval": "95 %"}, "attempts": attempts, "metrics": metrics, "polymers": []}
    return {
        "checkpoint": "runs/x",
        "weights_sha256": "ab" * 32,
        "commit": "c" * 40,
        "device": "cpu",
        "versions": {"rdkit": "1"},
        "settings": {"split": "test", "num": 2},
        **part,
        "parts": {"unit": part, "oligomer": part},
        "distributions": {
            "link_bins": 36,
            "link_counts": {method: rng.integers(0, 9, 36).tolist() for method in METHODS},
            "torsion_maps": {"bins": 36, "maps": {method: rng.integers(0, 9, (36, 36)).tolist() for method in ("model", "reference")}},
            "radius_of_gyration_ang": {method: rng.normal(12, 1, 24).tolist() for method in METHODS},
            "size_ratio": {method: rng.normal(1, 0.1, 24).tolist() for method in METHODS},
        },
    }


def by_method(mine: float, other: float) -> dict[str, Any]:
    """The model and all others."""
    return {method: estimate(mine if method == "model" else 11.9 if method == "reference" else other) for method in METHODS}


def rows(count: int = 60) -> list[dict[str, Any]]:
    """metrics.jsonl."""
    found = []
    for step in range(1, count + 1):
        row: dict[str, Any] = {"step": step, "train/chains_per_sec": 20.0 + step % 3, "train/atoms_per_sec": 900.0}
        for name in ("loss", "local", "orientation"):
            row[f"train/{name}"] = 1 + math.exp(-step / 20) + 0.1 * math.sin(step)
            if step % 20 == 0:
                row[f"val/{name}"] = 1.2
        found.append(row)
    found[3]["train/loss"] = None
    return found


def files() -> dict[str, Any]:
    """JSON of a run by its place below the folder."""
    shard = {"name": "train-000000.tar", "num_samples": 9, "bytes": 2_000_000, "samples": []}
    return {
        "model/config.json": {"recipe": "polyconfm_tiny", "train": {"num_steps": 60, "lr": 0.002}, "objective": {"name": "polyconfm"}},
        "model/run.json": {"commit": "d" * 40, "machine": "x86_64", "world_size": 2, "threads": 1, "versions": {"torch": "2.13.0"}},
        "shards/manifest.json": {
            "funnel": {"attempted": 12, "kept": 9, "dropped": {"no-force-field": 2, "valence": 1}},
            "splits": {"train": [shard], "val": [], "test": []},
        },
        "shards/funnel.json": {"stages": [{"stage": "read", "left": 12, "dropped": {}}, {"stage": "conform", "left": 9, "dropped": {}}]},
        "eval/results.json": results(),
        "property/results.json": {
            "task": "Tg",
            "unit": "K",
            "metrics": {"mae": {"unit": "K", "value": 21.0, "low": 18.0, "high": 25.0}},
            "predictions": [
                {"psmiles": "*CC*", "measured": t, "predicted": t + 9, "lower": t - 20, "upper": t + 30} for t in (250, 300, 350)
            ],
        },
    }


def write(folder: Path, content: dict[str, Any], metrics: list[dict[str, Any]], candidates: str = "psmiles,o2\n*CC*,10\n") -> None:
    """Put a run into a folder."""
    for name, data in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data))
    (folder / "model").mkdir(parents=True, exist_ok=True)
    (folder / "model" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    (folder / "design").mkdir(exist_ok=True)
    (folder / "design" / "candidates.csv").write_text(candidates)


def sdf(psmiles: str, num_units: int, count: int = 2, seed: int = 0, **properties: str) -> str:
    """Records of a chain whose atoms lie on a noisy helix: bonds are true, shapes are not."""
    from data_shards.chem.chain import chain_mol
    from foundation.sampling.request import read_request
    from foundation.sampling.writers import conformation_mol, sdf_record

    request = read_request(psmiles, num_units, "atactic", 0)
    mol = chain_mol(request.topology, request.num_units)
    rng = np.random.default_rng(seed)
    along = np.arange(mol.GetNumAtoms())
    text = ""
    for _ in range(count):
        x_ang = np.stack([1.2 * along, 4 * np.cos(along / 3), 2 * np.sin(along / 3)], axis=1) + rng.normal(0, 0.5, (len(along), 3))
        made = conformation_mol(mol, x_ang, hydrogens=True)
        text += sdf_record(made, {"psmiles": psmiles, "num_units": num_units, **properties})
    return text


def poisoned(value: Any) -> Any:
    """The same with markup in every text, and under a key of markup in every object."""
    if isinstance(value, dict):
        more = {HOSTILE: poisoned(next(iter(value.values())))} if value else {}
        return {key: poisoned(item) for key, item in value.items()} | more
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    return HOSTILE + value if isinstance(value, str) else value
