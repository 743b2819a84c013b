"""The evaluation from shards to numbers: every polymer of a split, every method, one record each; then means with intervals."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.chem.repeat_unit import build_unit
from data_shards.conformers.grow import grow_chain
from data_shards.conformers.quality import HEAVY_CLASH_FACTOR
from data_shards.errors import PolymerError
from data_shards.progress import Progress
from data_shards.reader import ShardSet
from data_shards.schema import PolymerSample
from foundation.data.collate import collate, featurise
from foundation.errors import InputError
from foundation.evaluation.baselines import LinkHistogram, baselines, train_histogram
from foundation.evaluation.bootstrap import COVERAGE, NUM_RESAMPLES, mean_over_polymers, paired, pooled_divergence
from foundation.evaluation.measure import BOND_ERROR_EDGES_ANG, MAX_ENERGIES, Attempts, Measurement, Reference, measure, reference_of
from foundation.evaluation.metrics import METRICS, NUM_BINS
from foundation.evaluation.mmff import MAX_ENERGY_ATOMS, MAX_ITERATIONS
from foundation.sampling.request import NUM_SHAPES, ChainRequest
from foundation.sampling.run import GeneratedChain, generate_chains

MODEL, REFERENCE, GROW = "model", "reference", "grow engine"
POOLED = "link_dihedral_pooled_jsd_bits"


@dataclass(frozen=True)
class Settings:
    """What decides the numbers, but for weights and shards."""

    split: str
    num: int  # conformations a method makes of each polymer
    limit: int | None
    seed: int
    batch_atoms: int
    train_limit: int  # training polymers read for the histogram baseline
    suite: str = "chains"  # full: units and oligomers too


@dataclass(frozen=True)
class PolymerRecord:
    """One polymer of the split with the measurement of every method."""

    key: str
    psmiles: str
    num_units: int
    link_counts: NDArray[np.float64]  # (NUM_BINS,) of the references
    methods: dict[str, Measurement]


def select(shards: ShardSet, settings: Settings) -> list[Any]:
    """Entries of the split that are evaluated.

    Raises:
        InputError: the split is empty.
    """
    entries = shards.samples(settings.split)
    if not entries:
        raise InputError(f"{shards.path} has no polymer in split {settings.split!r}; pass another --split or build with a larger fraction")
    return entries[: settings.limit]


def training_histogram(shards: ShardSet, settings: Settings) -> LinkHistogram | None:
    """Link dihedrals of the first training polymers; None where there is none."""
    return train_histogram(shards.read(entry) for entry in shards.samples("train")[: settings.train_limit])


Watch = Callable[[PolymerSample, Reference, Mapping[str, Attempts]], None]


def evaluate(
    model: Any, shards: ShardSet, settings: Settings, device: torch.device, bars: Progress, watch: Watch | None = None
) -> list[PolymerRecord]:
    """Measure the model and the baselines on a split.

    Args:
        model: objective in eval mode on the device.
        shards: opened shards.
        settings: split, counts, seed.
        device: of the model.
        bars: where progress is shown.
        watch: is handed every polymer with the chains of the model and of the grow engine.
    """
    samples = [shards.read(entry) for entry in select(shards, settings)]
    references = [reference_of(sample) for sample in samples]
    histogram = training_histogram(shards, settings)
    records = []
    with bars.stage("evaluate", len(samples)) as stage:
        made = generated(model, samples, references, settings, device)
        for sample, reference, attempts in zip(samples, references, made, strict=True):
            density = likelihood(model, sample, device)
            fresh = timed(partial(grown, sample, settings))
            methods = {
                MODEL: measure(reference, replace(attempts, known=attempts.known | density)),
                REFERENCE: measure(reference, Attempts(reference.x_ang), against_reference=False),
                GROW: measure(reference, fresh),
            }
            for name, method in baselines(histogram):
                attempt = partial(method, sample, reference.handedness, settings.num, settings.seed)
                methods[name] = measure(reference, timed(attempt))
            topology = sample.topology
            records.append(PolymerRecord(sample.key, topology.psmiles, sample.num_units, reference.link_counts, methods))
            if watch is not None:
                watch(sample, reference, {MODEL: attempts, GROW: fresh})
            stage.advance(1, topology.psmiles[:40])
    return records


def generated(
    model: Any, samples: Sequence[PolymerSample], references: Sequence[Reference], settings: Settings, device: torch.device
) -> Iterator[Attempts]:
    """The model's conformations of each polymer, in order. It is told the configuration of the references, never their coordinates."""
    requests = [
        ChainRequest(s.topology.psmiles, s.num_units, s.topology, s.num_units, s.tacticity, settings.seed, r.handedness, row)
        for row, (s, r) in enumerate(zip(samples, references, strict=True), start=1)
    ]
    chains = generate_chains(model, requests, settings.num, settings.seed, settings.batch_atoms, device)
    for request in requests:
        own = [next(chains) for _ in range(settings.num)]
        x_ang = [chain.x_ang for chain in own if chain.x_ang is not None]
        shapes = [chain.x_unit_ang for chain in own if chain.x_unit_ang is not None]
        yield Attempts(
            np.stack(x_ang) if x_ang else np.zeros((0, request.num_heavy_atoms, 3)),
            tuple(chain.reason for chain in own if chain.reason is not None),
            np.stack(shapes) if shapes else None,
            cost_of(own),
        )


def cost_of(chains: Sequence[GeneratedChain]) -> dict[str, float]:
    """Means over conformations, those that failed included; calls are absent where the objective names no score network."""
    cost = {"seconds_per_conformation": float(np.mean([chain.seconds for chain in chains]))}
    calls = float(np.mean([chain.network_calls for chain in chains]))
    return cost | ({"network_calls_per_conformation": calls} if calls else {})


def timed(method: Callable[[], Attempts]) -> Attempts:
    """What a method makes, with the wall time that it took."""
    began = time.perf_counter()
    attempts = method()
    seconds = (time.perf_counter() - began) / max(attempts.num_attempted, 1)
    return replace(attempts, known=attempts.known | {"seconds_per_conformation": seconds})


def likelihood(model: Any, sample: PolymerSample, device: torch.device) -> dict[str, float]:
    """How probable the references are under the model; empty where it has no density."""
    if not model.capabilities.likelihood:
        return {}
    batch = collate([featurise(sample, k) for k in range(len(sample.heavy_ang))]).to(device)
    with torch.no_grad():
        nats = model.log_prob(batch).double().cpu().numpy()
    return {"nll_nats_per_heavy_atom": float(-nats.mean() / sample.heavy_ang.shape[1])}


def grown(sample: PolymerSample, settings: Settings) -> Attempts:
    """Fresh chains of the grow engine with the configuration of the references: what a perfect model of grown references would reach.

    Conformation k of the engine depends on (seed, k) alone: the first K of the sample's seed may be its references and are left out.
    """
    known = len(sample.heavy_ang)
    try:
        chain = grow_chain(
            build_unit(sample.topology.psmiles),
            sample.num_units,
            num_conformations=known + settings.num,
            tacticity=sample.tacticity,
            seed=sample.seed,
        )
    except PolymerError as error:
        return Attempts(np.zeros((0, sample.heavy_ang.shape[1], 3)), (error.reason,) * settings.num)
    return Attempts(chain.heavy_ang[known:].astype(np.float64))


def summarise(records: Sequence[PolymerRecord], seed: int) -> dict[str, Any]:
    """Means over polymers with bootstrap intervals, for every metric and method."""
    names = list(records[0].methods)
    table: dict[str, Any] = {}
    for metric, meaning in METRICS.items():
        row = {}
        values = {name: np.array([record.methods[name].values.get(metric, np.nan) for record in records]) for name in names}
        for method in names:
            own = [record.methods[method] for record in records]
            if metric == POOLED:
                if method == REFERENCE:
                    continue
                estimate = pooled_divergence(np.stack([m.link_counts for m in own]), np.stack([r.link_counts for r in records]), seed)
            else:
                estimate = mean_over_polymers(values[method], seed)
            if estimate.num_polymers:
                row[method] = asdict(estimate)
        table[metric] = {**meaning.described(), "methods": row, "model_minus": paired(values, MODEL, seed)}
    return table


class Counted(Protocol):
    """A measurement of a chain or of a part of it."""

    @property
    def num_attempted(self) -> int: ...
    @property
    def reasons(self) -> Mapping[str, int]: ...


class HasMethods(Protocol):
    """A record of a polymer."""

    @property
    def methods(self) -> Mapping[str, Counted]: ...


def attempts_of(records: Sequence[HasMethods]) -> dict[str, Any]:
    """Conformations attempted and failed, with reasons, by method."""
    out = {}
    for method in records[0].methods if records else ():
        own = [record.methods[method] for record in records]
        reasons: Counter[str] = Counter()
        for measurement in own:
            reasons.update(measurement.reasons)
        attempted = sum(measurement.num_attempted for measurement in own)
        out[method] = {"attempted": attempted, "failed": sum(reasons.values()), "reasons": dict(sorted(reasons.items()))}
    return out


def results_of(
    records: Sequence[PolymerRecord], settings: Settings, histogram_polymers: int | None, extra: dict[str, Any]
) -> dict[str, Any]:
    """Everything that tables and figures are drawn from, as plain JSON data."""
    methods = list(records[0].methods)
    return {
        **extra,
        "settings": asdict(settings),
        "protocol": {
            "num_polymers": len(records),
            "aggregation": "mean over the conformations of a polymer, then mean over polymers",
            "interval": f"{COVERAGE:.0%} percentile bootstrap over polymers, {NUM_RESAMPLES} resamples, seed {settings.seed}",
            "model_minus": "mean of the model minus another method over the same polymers, with its interval",
            "failures": "stay in the denominator: fractions count a failed conformation as zero, other numbers are of those that exist",
            "legacy": "as published, to compare with published numbers; decide by the sound metrics",
            "energies": f"of the first {MAX_ENERGIES} conformations (legacy: all); hydrogens relax for at most {MAX_ITERATIONS} iterations"
            f"; none above {MAX_ENERGY_ATOMS:,} heavy atoms",
            "divergence": "two finite samples of one law differ too: the grow engine's column is the floor where references are grown",
            "clash": f"closer than {HEAVY_CLASH_FACTOR:g} x the sum of van der Waals radii, more than three bonds apart, heavy atoms",
            "library_shapes": f"{NUM_SHAPES} relaxed RDKit shapes a polymer for the baselines",
            "histogram_polymers": histogram_polymers,
        },
        "attempts": attempts_of(records),
        "metrics": summarise(records, settings.seed),
        "distributions": {
            "link_counts": {
                REFERENCE: _total(record.link_counts for record in records),
                **{m: _total(r.methods[m].link_counts for r in records) for m in methods if m != REFERENCE},
            },
            "link_bins": NUM_BINS,
            "bond_error_edges_ang": BOND_ERROR_EDGES_ANG.tolist(),
            "bond_error_counts": {m: _total(r.methods[m].bond_error_counts for r in records) for m in methods},
            "torsion_maps": {"bins": NUM_BINS, "maps": {m: _total(r.methods[m].link_pair_counts for r in records) for m in methods}},
            "radius_of_gyration_ang": {m: [round(v, 3) for r in records for v in r.methods[m].size_ang] for m in methods},
            "size_ratio": {m: [round(v, 4) for r in records for v in r.methods[m].size_ratio] for m in methods},
        },
        "polymers": [
            {
                "key": record.key,
                "psmiles": record.psmiles,
                "num_units": record.num_units,
                "methods": {
                    name: {"attempted": m.num_attempted, "failed": m.reasons, "values": m.values} for name, m in record.methods.items()
                },
            }
            for record in records
        ],
    }


def _total(counts: Iterable[NDArray[np.float64]]) -> list[Any]:
    total: list[Any] = np.sum(list(counts), axis=0).tolist()
    return total
