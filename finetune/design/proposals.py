"""What `finetune.propose` does: draw, predict, rank, write. Everything that was drawn is counted, whatever became of it."""

from __future__ import annotations

import csv
import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.manifest import write_atomic
from data_shards.progress import Progress, progress
from finetune.design.drawing import Outcome, Wishes, funnel
from finetune.design.goals import Target, check_reach, parse_targets
from finetune.design.guide import EASY, SYNTHESIS, Guide, Said, rank, synthetic_accessibility
from finetune.design.job import GENERATOR, PROPERTY
from finetune.design.refine import Aim, Judged, draw_refined, missed
from finetune.design.sample import SampleSettings
from finetune.design.saved import Generator, load_generator
from finetune.design.wish import classes_of, fragment
from foundation.errors import InputError

PICTURES = 30  # candidates in the gallery
SHOWN = 10  # rows on the screen
FUNNEL = ".json"
NEAREST = 40  # labelled polymers with the nearest values, of which one is a reference


@dataclass(frozen=True)
class Request:
    """What the user asked for; see the options of finetune.propose."""

    model: Path
    targets: tuple[str, ...]
    num: int
    out: Path
    draws: float
    guidance: float
    steps: int
    references: float
    refine: float
    like: str | None
    keep: str | None
    without: str | None
    checkpoint: str | None
    structures: int
    num_units: int
    seed: int


@dataclass(frozen=True)
class Asked:
    """Checked and loaded.

    Attributes:
        request: as asked.
        generator: of the model.
        guide: its property models, or None where it has no property.
        targets: parsed.
        said: sentences about targets beyond the data.
    """

    request: Request
    generator: Generator
    guide: Guide | None
    targets: tuple[Target, ...]
    said: tuple[str, ...]


def prepare(request: Request) -> Asked:
    """Check everything before anything is drawn.

    Raises:
        InputError: bad input.
    """
    folder = request.model / GENERATOR
    if not folder.is_dir():
        raise InputError(f"--model {request.model} holds no folder {GENERATOR}; pass a folder that finetune.design has finished")
    generator = load_generator(folder)
    targets = parse_targets(request.targets, generator.tasks)
    said = check_reach(targets, generator.known.values, generator.tasks)
    if request.like is not None and generator.projection is None:
        raise InputError(f"--like needs a model that knows references, and {request.model} was trained on structures alone; leave it out")
    if request.keep is not None:
        fragment(request.keep)
    classes_of(request.without or "")
    guide = Guide([request.model / PROPERTY / task.name for task in generator.tasks], request.checkpoint) if generator.tasks else None
    return Asked(request, generator, guide, targets, tuple(said))


@dataclass(frozen=True)
class Candidates:
    """Distinct polymers that were drawn, K of them.

    Attributes:
        psmiles, groups: of each.
        new: (K,) bool, not among the polymers of training.
        said: predictions; None where there are no property models.
        miss: (K,) how far from the targets, in deviations.
        accessibility: (K,) synthetic accessibility.
        order: places in the order of proposal.
    """

    psmiles: tuple[str, ...]
    groups: tuple[str, ...]
    new: NDArray[np.bool_]
    said: Said | None
    miss: NDArray[np.float64]
    accessibility: NDArray[np.float64]
    order: tuple[int, ...]


def propose(asked: Asked) -> None:
    """Draw, rank and write.

    Raises:
        InputError: nothing that was drawn is a polymer.
    """
    from foundation.sampling.provenance import provenance, write_json

    request, bars, start = asked.request, progress(), time.perf_counter()
    for sentence in asked.said:
        print(f"note: {sentence}")
    outcomes, groups, judged = drawn(asked, bars)
    counted = funnel(outcomes, groups, asked.generator.seen)
    if not any(groups):
        raise InputError(f"none of {len(outcomes)} drawn graphs is a polymer ({counted['reasons']}); raise --num, or ask for less at once")
    found = candidates(asked, judged, bars)
    seconds = time.perf_counter() - start
    request.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(request.out, _table(asked, found).encode())
    write_atomic(request.out.with_suffix(".svg"), _gallery(asked, found).encode())
    facts = {
        **provenance(None, str(request.model)),
        "targets": [str(target) for target in asked.targets],
        "guidance": request.guidance,
        "steps": request.steps,
        "seed": request.seed,
        "references": request.references,
        "refine": request.refine,
        "like": request.like,
        "keep": request.keep,
        "without": request.without,
        "funnel": counted,
        "proposed": len(found.order),
        "seconds": seconds,
    }
    write_json(request.out.with_suffix(FUNNEL), facts)
    show(asked, found, counted, seconds)
    if request.structures:
        _structures(asked, found, bars)


def drawn(asked: Asked, bars: Progress) -> tuple[list[Outcome], list[str], Judged]:
    """Everything that was drawn, the canonical name of each, "" of what is no polymer, and what property models say of distinct ones."""
    request, wishes = asked.request, wishes_of(asked, bars)
    settings = SampleSettings(steps=request.steps, guidance=request.guidance)
    refined = asked.targets and request.keep is None
    aims = [Aim(asked.targets, np.arange(len(wishes.values)))] if refined else []
    return draw_refined(
        asked.generator, asked.guide, wishes, aims, settings, request.refine, request.seed, bars, table=request.like is None
    )


def wishes_of(asked: Asked, bars: Progress) -> Wishes:
    """What every draw is asked for: ranges are filled as the training values are spread in them."""
    request, generator = asked.request, asked.generator
    number = int(np.ceil(request.num * request.draws))
    rng = np.random.default_rng([request.seed, 4])
    values = np.full((number, len(generator.tasks)), np.nan)
    names = [task.name for task in generator.tasks]
    for target in asked.targets:
        column = names.index(target.task.name)
        values[:, column] = target.wish(number, generator.known.values[:, column], rng)
    width = 0 if generator.projection is None else generator.projection.components.shape[1]
    reference = np.full((number, width), np.nan, dtype=np.float32)
    if request.like is not None:
        assert generator.projection is not None
        assert asked.guide is not None
        read = asked.guide.read([request.like], bars)
        if not len(read):
            raise InputError(f"--like {request.like!r} {read.features.refused[0].reason}; pass another polymer")
        reference[:] = generator.projection(read.embedding)[0]
    elif asked.targets and width and request.references:
        assert asked.guide is not None
        reference = references_of(generator, asked.guide, values, request.references, rng, bars)
    fixed = None if request.keep is None else fragment(request.keep)
    return Wishes(values, reference, fixed, classes_of(request.without or ""))


def references_of(
    generator: Generator, guide: Guide, values: NDArray[np.float64], share: float, rng: np.random.Generator, bars: Progress
) -> NDArray[np.float32]:
    """(M, R) projected embeddings of labelled polymers of training with values near what is asked, for a share of the draws; NaN elsewhere.

    A draw with a reference is told what such polymers look like: where few have such values, properties alone say too little.

    Args:
        generator: that knows references.
        guide: its property models, which embed.
        values: (M, P) learned values, NaN where nothing is asked.
        share: of the draws.
        rng: of the choice.
        bars: where progress is shown.
    """
    known = generator.known
    assert generator.projection is not None
    out = np.full((len(values), generator.projection.components.shape[1]), np.nan, dtype=np.float32)
    rows = np.flatnonzero(rng.random(len(values)) < share)
    labelled = np.flatnonzero(known.labelled)
    away = (values[rows, None] - known.values[labelled][None]) / generator.deviation
    order = np.argsort(np.nansum(np.square(away), axis=2), axis=1, kind="stable")[:, :NEAREST]
    if not order.size:
        return out
    chosen = labelled[order[np.arange(len(rows)), rng.integers(order.shape[1], size=len(rows))]]
    distinct, place = np.unique(chosen, return_inverse=True)
    read = guide.read([known.psmiles[k] for k in distinct], bars)
    embedded = np.full((len(distinct), out.shape[1]), np.nan, dtype=np.float32)
    embedded[read.features.kept] = generator.projection(read.embedding)
    out[rows] = embedded[place]
    return out


def candidates(asked: Asked, judged: Judged, bars: Progress) -> Candidates:
    """Distinct polymers ranked: near the targets, easy to make, unlike each other, new ones first."""
    texts, names, said = judged.psmiles, judged.groups, judged.said
    new = np.array([name not in asked.generator.seen for name in names])
    accessibility = synthetic_accessibility(texts)
    if said is None:
        from finetune.fingerprints import features

        own = features(texts, 0, bars)
        miss, kept = np.zeros(len(names)), np.ones(len(names), dtype=bool)
        counts, atoms = np.zeros((len(names), own.counts.shape[1]), dtype=np.int16), np.ones(len(names), dtype=np.int64)
        counts[own.kept], atoms[own.kept] = own.counts, own.atoms
    else:
        miss, kept, counts, atoms = missed(asked.targets, judged, asked.generator), said.kept, said.counts, said.atoms
    cost = miss + SYNTHESIS * np.maximum(accessibility - EASY, 0.0) + np.where(new, 0.0, 1.0)
    usable = np.flatnonzero(kept & np.isfinite(cost))
    order = usable[rank(cost[usable], counts[usable], atoms[usable], asked.request.num)]
    return Candidates(texts, names, new, said, miss, accessibility, tuple(order.tolist()))


def _columns(asked: Asked) -> list[str]:
    values = [f"{task.name}{end}" for task in asked.generator.tasks for end in ("", "_lower", "_upper")]
    rest = ["in_domain", "similarity", "nearest"] if asked.guide is not None else []
    return ["psmiles", "rank", *values, *rest, "new", "accessibility", "miss"]


def _rows(asked: Asked, found: Candidates) -> list[list[str]]:
    rows = []
    for place, k in enumerate(found.order, start=1):
        row = [found.psmiles[k], str(place)]
        if found.said is not None:
            for column, task in enumerate(asked.generator.tasks):
                ends = np.array([own[k, column] for own in (found.said.value, found.said.low, found.said.high)])
                row += [f"{value:.4g}" for value in task.backward(ends)]
            row += ["true" if found.said.in_domain[k] else "false", f"{found.said.similarity[k]:.3f}", found.said.nearest[k]]
        rows.append([*row, "true" if found.new[k] else "false", f"{found.accessibility[k]:.2f}", f"{found.miss[k]:.3f}"])
    return rows


def _table(asked: Asked, found: Candidates) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_columns(asked))
    table.writerows(_rows(asked, found))
    return text.getvalue()


def _gallery(asked: Asked, found: Candidates) -> str:
    """The first candidates drawn, with their predictions below."""
    from data_shards.chem.drawing import sheet

    chosen, columns = found.order[:PICTURES], _columns(asked)
    legends = []
    for row in _rows(asked, found)[: len(chosen)]:
        cells = dict(zip(columns, row, strict=True))
        values = [f"{task.name} {cells[task.name]}" for task in asked.generator.tasks]
        legends.append(f"{cells['rank']}. {', '.join(values)}")
    return sheet([found.psmiles[k] for k in chosen], legends)


def show(asked: Asked, found: Candidates, counted: dict[str, Any], seconds: float) -> None:
    """The first rows, and what became of all draws."""
    from rich.console import Console
    from rich.table import Table

    from foundation.evaluation.table import WIDTH

    screen = Console()
    screen = screen if screen.is_terminal else Console(width=WIDTH)
    asked_for = ", ".join(str(target) for target in asked.targets) or "any polymer"
    made = Table(title=f"{len(found.order)} polymers for {asked_for}", title_justify="left")
    kept = [name for name in _columns(asked) if name not in ("nearest", "miss")]
    for name in kept:
        made.add_column(name, justify="left" if name == "psmiles" else "right", overflow="fold")
    places = [_columns(asked).index(name) for name in kept]
    for row in _rows(asked, found)[:SHOWN]:
        made.add_row(*(row[place] for place in places))
    screen.print(made)
    share = counted["valid"] / max(counted["drawn"], 1)
    reasons = ", ".join(f"{number} {reason}" for reason, number in counted["reasons"].items()) or "none"
    counts = f"{counted['drawn']} drawn, {counted['valid']} polymers ({share:.0%}), {counted['distinct']} distinct, {counted['new']} new"
    print(f"{counts}; no polymers: {reasons}")
    print(f"candidates: {asked.request.out}; look: {asked.request.out.with_suffix('.svg')}; {seconds:.0f} s")


def _structures(asked: Asked, found: Candidates, bars: Progress) -> None:
    """A generated chain of each of the first candidates, beside the table."""
    import torch

    from foundation.sampling.job import Job, show_report, write_chains
    from foundation.sampling.request import read_request
    from foundation.sampling.run import BATCH_ATOMS
    from foundation.train.checkpoint import load_model

    request = asked.request
    checkpoint = request.checkpoint or (asked.generator.projection.checkpoint if asked.generator.projection else "small")
    first = [found.psmiles[k] for k in found.order[: request.structures]]
    chains = [read_request(psmiles, request.num_units, "atactic", request.seed, row) for row, psmiles in enumerate(first, start=1)]
    device = torch.device("cpu")
    model, _ = load_model(checkpoint)
    job = Job(chains, [], 1, request.seed, BATCH_ATOMS["cpu"], True, False, False, device, checkpoint)
    out = request.out.with_suffix(".sdf")
    show_report(write_chains(model, job, out, bars), out)


__all__ = ["Asked", "Candidates", "Request", "candidates", "prepare", "propose", "references_of", "wishes_of"]
