"""The page: sections top to bottom, everything inlined, and a policy that forbids every request."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foundation.evaluation.figures import COLOURS
from foundation.report import figures, tables
from foundation.report.markup import Child, Markup, join, table, tag
from foundation.report.sources import RunFiles, listing, mapping, number, read_run
from foundation.report.structures import RAMP, Chain, drawing, read_chains
from foundation.report.svg import short

log = logging.getLogger(__name__)
HERE = Path(__file__).parent
VIEWER = HERE / "vendor" / "3Dmol-min.js"
NAME = "report.html"
DARK_TINT = 0.38  # of white in a method's colour on a dark page
Section = tuple[str, str, Markup | None, str]  # anchor, title, content, sentence where there is none


def write_report(folder: Path, out: Path) -> RunFiles:
    """Read a run and write its page, whole or not at all.

    Raises:
        InputError: as sources.read_run.
    """
    from data_shards.manifest import write_atomic

    found = read_run(folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, build_page(found).encode("utf-8", errors="replace"))
    return found


def leave_report(run: Path) -> None:
    """Write the page of a run that has ended. What goes wrong is a warning: a page is not worth a run."""
    try:
        write_report(run, run / NAME)
        log.info("report: %s; after an evaluation: python -m foundation.report %s --overwrite", run / NAME, run)
    except Exception as error:
        log.warning("no report was written to %s (%s: %s)", run / NAME, type(error).__name__, error)


def build_page(found: RunFiles) -> str:
    """The whole page as text."""
    chains, left_out = read_chains(found.structures)
    viewer_code, packed = _viewer_code() if chains else ("", "")
    ours = (HERE / "viewer.js").read_text(encoding="utf-8") if chains else ""
    sections: list[Section] = [
        ("evaluation", "Model against baselines", _evaluation(found.results), _absent(found, "evaluation", "no eval/results.json")),
        ("shapes", "Torsions and sizes", _shapes(found.results), "Absent: the evaluation holds no distributions."),
        ("structures", "Generated chains", _structures(chains, left_out), "Absent: no SD file with chains lies beside the run."),
        ("training", "Training", _training(found), _absent(found, "metrics", "no metrics.jsonl with steps")),
        ("shards", "Shards", _shards(found), _absent(found, "shards", "no shards with a manifest.json beside the run")),
        ("property", "Property prediction", _property(found), _absent(found, "property", "no property/results.json")),
        ("design", "Design candidates", _design(found), _absent(found, "design", "no design/candidates.csv")),
        ("setup", "Configuration and versions", _setup(found), _absent(found, "config", "no config.json or run.json")),
    ]
    body = [
        tag("a", "Skip to the numbers", href="#main", class_="skip"),
        _header(found, [(anchor, title) for anchor, title, content, _ in sections if content is not None]),
        tag("main", *(_section(section) for section in sections), id="main"),
        tag("footer", tag("p", _foot(bool(chains)))),
    ]
    if chains:
        data = {"ramp": RAMP, "chains": [chain.data() for chain in chains]}
        body.append(tag("script", _json_text(data), type="application/json", id="chains"))
        body.append(tag("script", Markup(packed), type="application/gzip", id="packed"))
        body.append(tag("script", Markup(ours)))
    title = f"{found.name}: report"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy([code for code in (ours, viewer_code) if code])),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Markup((HERE / "page.css").read_text(encoding="utf-8") + _colours())),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', *body), lang='en')}\n"


# ----------------------------------------------------------------------------------------------------------------- what is inlined


def _viewer_code() -> tuple[str, str]:
    """3Dmol.js as text, and packed for the page; the time stamp of gzip is left out, so that equal runs give equal pages."""
    code = VIEWER.read_bytes()
    return code.decode("utf-8"), base64.b64encode(gzip.compress(code, 9, mtime=0)).decode()


def _policy(scripts: list[str]) -> str:
    """Nothing may be loaded from anywhere; only these scripts run."""
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'" for code in scripts]
    script = " ".join(hashes) or "'none'"
    return f"default-src 'none'; script-src {script}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def _json_text(data: Mapping[str, Any]) -> Markup:
    """JSON that may stand inside a script element: no character that could end it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _colours() -> str:
    """Colours of the methods, shared with the figures of evaluation, lighter on a dark page; black is the page's ink."""
    light, dark = [], []
    for place, colour in enumerate(COLOURS.values()):
        if not colour.startswith("#"):
            light.append(f".method{place} {{ color: var(--ink); }}")
            continue
        light.append(f".method{place} {{ color: {colour}; }}")
        channels = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
        tinted = "".join(f"{round(c + (255 - c) * DARK_TINT):02x}" for c in channels)
        dark.append(f".method{place} {{ color: #{tinted}; }}")
    shades = [0.12, 0.25, 0.42, 0.6, 0.8, 1.0]
    levels = [f".level{k} {{ fill: rgb(var(--map), {a}); background: rgb(var(--map), {a}); }}" for k, a in enumerate(shades, start=1)]
    rules = "\n".join(light + levels)
    rules += f"\n.ramp {{ background: linear-gradient(90deg, {', '.join(RAMP)}); }}"
    return f"{rules}\n@media screen and (prefers-color-scheme: dark) {{ {' '.join(dark)} }}\n"


# ------------------------------------------------------------------------------------------------------------------------ the parts


def _absent(found: RunFiles, part: str, missing: str) -> str:
    """Why a section is not there."""
    trouble = found.troubles.get(part)
    return f"Absent: {trouble}." if trouble else f"Absent: {missing}."


def _section(section: Section) -> Markup:
    anchor, title, content, absent = section
    if content is None:
        return tag("section", tag("h2", title), tag("p", absent), class_="absent", id=anchor)
    return tag("section", tag("h2", title, id=f"{anchor}-title"), content, id=anchor, aria_labelledby=f"{anchor}-title")


def _header(found: RunFiles, anchors: list[tuple[str, str]]) -> Markup:
    recipe = found.config.get("recipe") or mapping(found.config.get("objective")).get("name")
    facts = [
        ("", recipe if isinstance(recipe, str) else None),
        ("commit ", _first(found.run.get("commit"), found.results.get("commit"))),
        ("", machine(found)),
        ("evaluated on ", _first(found.results.get("device"))),
    ]
    line = " · ".join(f"{name}{figures.shorten(str(value), 60)}" for name, value in facts if value)
    tiles = [tag("li", tag("b", value), tag("span", text)) for value, text in key_numbers(found)]
    links = tag("nav", tag("ul", *(tag("li", tag("a", title, href=f"#{anchor}")) for anchor, title in anchors)), aria_label="Sections")
    title = join(tag("p", "Report of the run", class_="eyebrow"), tag("h1", found.name), tag("p", line, class_="facts"))
    return tag("header", title, tag("ul", *tiles, class_="tiles") if tiles else None, links)


def _first(*values: Any) -> str | None:
    """The first that is a text, a commit cut to its usual length."""
    text = next((value for value in values if isinstance(value, str) and value), None)
    if text and len(text) >= 40 and all(c in "0123456789abcdef" for c in text[:40]):
        return text[:10] + text[40:]
    return text


def machine(found: RunFiles) -> str | None:
    """Where it was trained, as far as run.json says."""
    run = found.run
    ranks, threads, kind = number(run.get("world_size")), number(run.get("threads")), run.get("machine")
    device = run.get("device")
    parts = [value for value in (device, kind) if isinstance(value, str)]
    parts += [f"{count:.0f} {name}{'' if count == 1 else 's'}" for count, name in ((ranks, "rank"), (threads, "thread")) if count]
    return ", ".join(parts) or None


def key_numbers(found: RunFiles) -> list[tuple[str, str]]:
    """(number, what it is) for the tiles at the top."""
    tiles = []
    steps, losses = figures.series(found.rows, "train/loss")
    if steps:
        wanted = number(mapping(found.config.get("train")).get("num_steps"))
        tiles.append((f"{steps[-1]:,.0f}", "optimiser steps" + (f" of {wanted:,.0f}" if wanted else "")))
        window = figures.window_of(len(losses))
        said = f"mean of {window} steps" if window > 1 else "last step"
        tiles.append((short(figures.smooth(losses, window)[-1]), f"training loss, {said}"))
    _, val = figures.series(found.rows, "val/loss")
    if val:
        tiles.append((short(val[-1]), f"validation loss; lowest {short(min(val))}"))
    _, speed = figures.series(found.rows, "train/chains_per_sec")
    if speed:
        tiles.append((short(sorted(speed)[len(speed) // 2]), "chains per second, median"))
    funnel = mapping(found.manifest.get("funnel"))
    kept, attempted = number(funnel.get("kept")), number(funnel.get("attempted"))
    if kept is not None:
        tiles.append(
            (f"{kept:,.0f}", f"chains in the shards, of {attempted:,.0f} rows" if attempted is not None else "chains in the shards")
        )
    if found.results:
        tiles.append((f"{tables.polymers_of(found.results):,}", f"polymers evaluated, {_split_of(found.results)} split"))
        verdicts = [tables.judge(mapping(metric))[0] for metric in mapping(found.results.get("metrics")).values()]
        judged = sum(sign in ("better", "worse", "alike") for sign in verdicts)
        if judged:
            tiles.append((f"{verdicts.count('better')} of {judged}", "metrics where the model beats the best trivial baseline"))
    return tiles


def _split_of(results: dict[str, Any]) -> str:
    return figures.shorten(str(mapping(results.get("settings")).get("split", "unknown")), 20)


def _evaluation(results: dict[str, Any]) -> Markup | None:
    chains = tables.metric_tables(results)
    if chains is None:
        return None
    settings = mapping(results.get("settings"))
    facts = [f"{tables.polymers_of(results)} polymers of the {_split_of(results)} split"]
    facts += [f"{count:.0f} conformations each" for count in [number(settings.get("num"))] if count]
    facts += [f"weights {results['weights_sha256'][:12]}" for _ in [0] if isinstance(results.get("weights_sha256"), str)]
    parts: list[Child] = [tag("p", ", ".join(facts) + ".", class_="note"), chains]
    for name, part in mapping(results.get("parts")).items():
        made = tables.metric_tables(mapping(part))
        if made is not None:
            parts += [tag("h3", {"unit": "Repeat units", "oligomer": "Oligomers"}.get(str(name), str(name))), made]
    return join(*parts)


def _shapes(results: dict[str, Any]) -> Markup | None:
    maps = figures.torsion_maps(results)
    rest = figures.grid([figures.links(results), figures.sizes(results)])
    if not maps and rest is None:
        return None
    text = "Each pair of neighbouring link dihedrals of a chain is one count, like the two angles of a Ramachandran map."
    shown = join(tag("h3", "Torsion maps"), tag("p", text, class_="note"), figures.map_legend(), figures.grid(maps)) if maps else None
    return join(shown, tag("h3", "Link dihedrals and sizes") if maps and rest is not None else None, rest)


def _structures(chains: list[Chain], left_out: list[str]) -> Markup | None:
    notes = tag("p", "Left out: " + "; ".join(left_out[:6]) + ".", class_="note") if left_out else None
    if not chains:
        return notes
    options = [tag("option", f"{chain.name} ({figures.shorten(chain.psmiles, 40)})", value=k) for k, chain in enumerate(chains)]
    looks = [tag("option", text, value=name) for name, text in (("stick", "sticks"), ("ball", "balls and sticks"), ("sphere", "spheres"))]
    colours = [tag("option", text, value=name) for name, text in (("unit", "place along the chain"), ("element", "element"))]
    acts = [("left", "◀", "turn left"), ("right", "▶", "turn right"), ("up", "▲", "turn up"), ("down", "▼", "turn down")]
    acts += [("nearer", "+", "nearer"), ("farther", "−", "farther"), ("whole", "⤢", "whole chain")]
    buttons = [tag("button", sign, type="button", data_act=name, aria_label=text, title=text) for name, sign, text in acts]
    controls = tag(
        "div",
        tag("label", "Chain", tag("select", *options, id="pick"), class_="pick"),
        tag("label", "Style", tag("select", *looks, id="style")),
        tag("label", "Colour", tag("select", *colours, id="colour")),
        class_="controls",
    )
    loading = tag("p", "The viewer starts here when scripts are allowed; the drawings below show the same chains.")
    first = {chain.name.rpartition(", conformation")[0]: chain for chain in reversed(chains)}
    drawn = [tag("figure", drawing(chain), tag("figcaption", _about(chain))) for chain in reversed(first.values())]
    return join(
        controls,
        tag("div", loading, id="viewer", class_="viewer"),
        tag("div", *buttons, class_="controls"),
        tag("p", "", id="announce", class_="note screen", aria_live="polite"),
        tag("p", "Heavy atoms only. Colour runs from the first repeat unit to the last:", class_="note"),
        tag("div", "", class_="ramp", role="img", aria_label="blue at the first unit, over green and yellow, to red at the last"),
        tag("div", *drawn, class_="chains"),
        notes,
    )


def _about(chain: Chain) -> str:
    units = f"{chain.num_units} units, " if chain.num_units is not None else ""
    return f"{chain.name}: {figures.shorten(chain.psmiles, 60)}, {units}{len(chain.elements)} heavy atoms"


def _training(found: RunFiles) -> Markup | None:
    curves = figures.losses(found.rows)
    if not curves:
        return None
    note = f"metrics.jsonl cannot be read whole: {found.troubles['metrics']}" if "metrics" in found.troubles else None
    speed = figures.grid(figures.throughput(found.rows))
    return join(tag("p", note) if note else None, figures.grid(curves), tag("h3", "Throughput") if speed is not None else None, speed)


def _shards(found: RunFiles) -> Markup | None:
    facts = mapping(found.manifest.get("funnel"))
    if not found.manifest:
        return None
    rows: list[list[Child]] = []
    for split, shards in mapping(found.manifest.get("splits")).items():
        entries = [mapping(shard) for shard in listing(shards)]
        polymers = sum(number(entry.get("num_samples")) or 0 for entry in entries)
        size_mb = sum(number(entry.get("bytes")) or 0 for entry in entries) / 1e6
        rows.append([str(split), f"{polymers:,.0f}", str(len(entries)), short(size_mb)])
    splits = table("What the shards hold", ["split", "chains", "shards", "MB"], rows) if rows else None
    dropped = {str(reason): number(count) for reason, count in mapping(facts.get("dropped")).items()}
    lost: list[list[Child]] = [
        [reason, f"{count:,.0f}"] for reason, count in sorted(dropped.items(), key=lambda item: -(item[1] or 0)) if count is not None
    ]
    reasons = table("Dropped, by reason", ["reason", "rows"], lost) if lost else tag("p", "Nothing was dropped.")
    figure = figures.funnel(found.manifest, found.funnel)
    return join(tag("p", found.places.get("shards", ""), class_="note"), figures.grid([figure, tag("div", splits, reasons)]))


def _property(found: RunFiles) -> Markup | None:
    figure = figures.parity(found.property)
    rows: list[list[Child]] = []
    for name, metric in mapping(found.property.get("metrics")).items():
        value, low, high = (number(mapping(metric).get(key)) for key in ("value", "low", "high"))
        if value is not None:
            cell = tables.cell(tables.Estimate(value, value if low is None else low, value if high is None else high, 0))
            rows.append([tables.label(str(name)), str(mapping(metric).get("unit", "")), cell])
    made = table("Cross-validated, 95 % interval", ["metric", "unit", "value"], rows, numbers_from=2) if rows else None
    parts = [part for part in (made, _methods(found.property)) if part is not None]
    return figures.grid([figure, tag("div", *parts) if parts else None])


def _methods(results: dict[str, Any]) -> Markup | None:
    """Errors of every method of a cross-validation, mean and standard deviation over folds."""
    names, rows = mapping(results.get("methods")), []
    for kind, scores in mapping(results.get("scores")).items():
        cells: list[Child] = [str(names.get(kind, kind))]
        for metric in ("rmse", "mae", "r2"):
            mean, sd = (number(mapping(mapping(scores).get(metric)).get(key)) for key in ("mean", "sd"))
            cells.append("" if mean is None else f"{short(mean)} ± {short(sd or 0.0)}")
        rows.append(cells)
    return table("Methods, mean ± standard deviation over folds", ["method", "RMSE", "MAE", "R²"], rows) if rows else None


def _design(found: RunFiles) -> Markup | None:
    candidates = found.candidates
    if len(candidates) < 2:
        return None
    header: list[Child] = [*candidates[0]]
    parts: list[Child] = []
    counts = mapping(found.proposed.get("funnel"))
    said = [f"{value:,.0f} {name}" for name in ("drawn", "valid", "distinct", "new") if (value := number(counts.get(name))) is not None]
    targets = ", ".join(figures.shorten(str(own), 40) for own in listing(found.proposed.get("targets"))[:8])
    if said:
        parts.append(tag("p", f"{f'Asked for {targets}: ' if targets else ''}{', '.join(said)}.", class_="note"))
    if found.gallery:
        source = "data:image/svg+xml;base64," + base64.b64encode(found.gallery).decode()
        picture = tag("img", src=source, alt="repeat units of the first candidates, drawn, with their predicted properties")
        parts.append(tag("figure", picture, class_="gallery"))
    return join(*parts, table(f"First {len(candidates) - 1} candidates", header, [[*row] for row in candidates[1:]]))


def _setup(found: RunFiles) -> Markup | None:
    run = {key: value for key, value in found.run.items() if key != "versions"}
    versions = {**mapping(found.results.get("versions")), **mapping(found.run.get("versions"))}
    parts = []
    for title, data in (("Versions", versions), ("Run", run), ("Configuration", found.config)):
        rows: list[list[Child]] = [[key, tag("code", value)] for key, value in flat(data)]
        if rows:
            parts.append(tables.details(title, table(title, ["name", "value"], rows, numbers_from=9), opened=title == "Versions"))
    troubles = [tag("p", f"{trouble}.") for trouble in found.troubles.values()]
    return join(*parts, *troubles) if parts else None


def flat(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Keys with dots and values as JSON."""
    rows = []
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value and prefix.count(".") < 6:
            rows += flat(value, f"{name}.")
        else:
            rows.append((name, figures.shorten(value if isinstance(value, str) else json.dumps(value, default=str), 200)))
    return rows


def _foot(viewer: bool) -> str:
    text = "One file, no network. Written by python -m foundation.report."
    return text + " The viewer is 3Dmol.js 2.5.5 (BSD-3-Clause, University of Pittsburgh and contributors)." if viewer else text


def size_text(path: Path) -> str:
    """Size of a file for people."""
    return f"{os.path.getsize(path) / 1e6:.2f} MB"
