"""The metric tables of a report: the model beside the best trivial baseline, said in words, and every method behind it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from foundation.report.figures import MODEL, REFERENCE, method_class, shorten
from foundation.report.markup import Child, Markup, join, table, tag
from foundation.report.sources import listing, mapping, number
from foundation.report.svg import picture, short

NOT_TRIVIAL = (MODEL, REFERENCE, "grow engine")  # the grow engine makes the references of grown shards: a floor, no baseline
FEWEST = 5  # polymers from which an interval tells something
SMALLEST = 1e-5  # difference that is more than rounding: positions are float32
GROUPS = (  # title -> parts of the names of its metrics; the first that fits
    ("Energies", ("energy", "emat")),
    ("Bonds, angles, clashes, chirality", ("bond", "angle", "junction", "clash", "connectivity", "chirality", "tacticity")),
    ("Torsions", ("torsion", "dihedral", "jsd")),
    ("Size of the chains", ("gyration", "end_to_end", "persistence", "characteristic", "c_n", "rg_")),
    ("Distance to the references", ("rmsd", "mat_", "cov_", "amr_", "mis")),
    ("Cost and likelihood", ("second", "calls", "nll", "likelihood")),
)
WORDS = {word: word.upper() for word in ("mae", "jsd", "mmff", "rmsd", "cov", "amr", "mis", "nll")} | {"smat": "S-MAT", "emat": "E-MAT"}
UNITS = ("_kcal_mol", "_ang", "_deg", "_bits", "_fraction", "_per_heavy_atom", "_hartree")
SIGNS = {"better": "▲ better", "worse": "▼ worse", "alike": "≈ not told apart", "few": "– too few polymers", "none": "–"}


@dataclass(frozen=True)
class Estimate:
    """A mean over polymers with its interval."""

    value: float
    low: float
    high: float
    polymers: int


def estimates(metric: dict[str, Any]) -> dict[str, Estimate]:
    """Estimates by method; what is no number is left out."""
    found = {}
    for method, given in mapping(metric.get("methods")).items():
        value, low, high, count = (number(mapping(given).get(key)) for key in ("value", "low", "high", "num_polymers"))
        if value is not None:
            least, most = (value if low is None else low), (value if high is None else high)
            found[str(method)] = Estimate(value, min(least, most), max(least, most), int(count or 0))
    return found


def loss_of(estimate: Estimate, better: str, reference: Estimate | None) -> Estimate | None:
    """The same as a number of which less is better; None where that cannot be said."""
    if better == "low":
        return estimate
    if better == "high":
        return Estimate(-estimate.value, -estimate.high, -estimate.low, estimate.polymers)
    if better != "reference" or reference is None:
        return None
    low, high = estimate.low - reference.value, estimate.high - reference.value
    nearest = 0.0 if low <= 0 <= high else min(abs(low), abs(high))
    return Estimate(abs(estimate.value - reference.value), nearest, max(abs(low), abs(high)), estimate.polymers)


def judge(metric: dict[str, Any]) -> tuple[str, str | None]:
    """Key of SIGNS for the model against the best trivial baseline, and which that is.

    They are told apart where the interval of their difference over the same polymers does not hold zero; where a file has no such
    difference, and where a metric is to be near the reference, where their own intervals do not overlap.
    """
    found, better = estimates(metric), str(metric.get("better", "low"))
    losses = {m: loss for m, e in found.items() if m != REFERENCE and (loss := loss_of(e, better, found.get(REFERENCE))) is not None}
    trivial = {m: loss for m, loss in losses.items() if m not in NOT_TRIVIAL}
    if not trivial:
        return "none", None
    best = min(trivial, key=lambda m: (trivial[m].value, m))
    if MODEL not in losses:
        return "none", best
    mine, theirs = losses[MODEL], losses[best]
    if min(mine.polymers, theirs.polymers) < FEWEST:
        return "few", best
    apart = abs(mine.value - theirs.value) >= SMALLEST
    difference = estimates({"methods": metric.get("model_minus")}).get(best)
    if difference is not None and (less := loss_of(difference, better, None)) is not None:
        return ("better" if apart and less.high < 0 else "worse" if apart and less.low > 0 else "alike"), best
    return ("better" if apart and mine.high < theirs.low else "worse" if apart and mine.low > theirs.high else "alike"), best


def cell(estimate: Estimate | None) -> Child:
    """Value and interval."""
    if estimate is None:
        return "–"
    return join(short(estimate.value, 3), tag("small", f"[{short(estimate.low, 3)}, {short(estimate.high, 3)}]", class_="interval"))


def label(name: str) -> str:
    """The name of a metric for people."""
    for ending in UNITS:
        name = name.removesuffix(ending)
    return " ".join(WORDS.get(word, word) for word in re.split(r"[_\s]+", shorten(name, 80)))


def group_of(name: str) -> str:
    """Title of the group of a metric."""
    return next((title for title, parts in GROUPS if any(part in name for part in parts)), "Other")


def metric_tables(part: dict[str, Any]) -> Markup | None:
    """Verdict, table of the model against the best baseline, and details of one suite: chains, units or oligomers."""
    metrics = {str(name): mapping(metric) for name, metric in mapping(part.get("metrics")).items() if estimates(mapping(metric))}
    if not metrics:
        return None
    titles = [*(title for title, _ in GROUPS), "Other"]
    ordered = sorted(metrics, key=lambda name: titles.index(group_of(name)))
    verdicts = {name: judge(metrics[name]) for name in ordered}
    return join(
        verdict(verdicts),
        summary_table(metrics, ordered, verdicts),
        strip_legend(),
        details("Every method", every_method(part, metrics, ordered)),
        details("How each number is measured", protocols(part, metrics)),
    )


def verdict(verdicts: dict[str, tuple[str, str | None]]) -> Markup:
    """How often the model wins, and where it does not."""
    by_sign = {key: [label(name) for name, (sign, _) in verdicts.items() if sign == key] for key in SIGNS}
    judged = sum(len(by_sign[key]) for key in ("better", "worse", "alike"))
    if not judged:
        return tag("p", f"No verdict: it takes a model, a trivial baseline and {FEWEST} polymers.", class_="verdict")
    text = f"Against the best trivial baseline of each metric the model is better in {len(by_sign['better'])} of {judged}"
    text += f", worse in {len(by_sign['worse'])}, not told apart in {len(by_sign['alike'])}."
    worse = f" Worse: {', '.join(by_sign['worse'])}." if by_sign["worse"] else ""
    return tag("p", text + worse, class_="verdict")


def summary_table(metrics: dict[str, dict[str, Any]], ordered: list[str], verdicts: dict[str, tuple[str, str | None]]) -> Markup:
    """One row a metric: model, best trivial baseline, verdict, and all of them on a line."""
    columns = (("metric", None), ("model", "number"), ("best baseline", "number"), ("model is", "sign"), ("all methods", "wide"))
    body: list[Markup] = []
    group = None
    for name in ordered:
        metric, found, (sign, best) = metrics[name], estimates(metrics[name]), verdicts[name]
        if group_of(name) != group:
            group = group_of(name)
            body.append(tag("tr", tag("th", group, colspan=4, scope="rowgroup"), tag("td", class_="wide"), class_="group"))
        baseline = join(cell(found[best]), tag("small", best)) if best in found else "–"
        body.append(
            tag(
                "tr",
                tag("th", label(name), tag("small", unit_text(metric)), scope="row"),
                tag("td", cell(found.get(MODEL)), class_="number"),
                tag("td", baseline, class_="number"),
                tag("td", SIGNS[sign], class_=f"sign {sign}"),
                tag("td", strip(label(name), found, best), class_="wide"),
            )
        )
    head = tag("tr", *(tag("th", text, scope="col", class_=class_) for text, class_ in columns))
    caption = "Model and best trivial baseline: mean over polymers, 95 % interval below it"
    whole = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body), class_="metrics")
    return tag("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)


def unit_text(metric: dict[str, Any]) -> str:
    """Unit, and which way is better."""
    way = {"low": "lower is better", "high": "higher is better", "reference": "as the reference"}.get(str(metric.get("better")), "")
    return ", ".join(text for text in (shorten(str(metric.get("unit", "")), 30), way) if text)


def strip(name: str, found: dict[str, Estimate], best: str | None) -> Markup | None:
    """All methods on one line: the model as a disc with its interval, the reference as a bar, the best baseline as a diamond."""
    ends = [e.value for e in found.values()] + [end for m in (MODEL, best) if m in found for end in (found[m].low, found[m].high)]
    low, high = min(ends), max(ends)
    width, middle = 170.0, 11.0
    scale = (width - 16) / (high - low) if high - low > 0 else 0.0
    if not scale < float("inf"):
        return None

    def at(value: float) -> float:
        return round(8 + (value - low) * scale if scale else width / 2, 1)

    parts = [tag("line", x1=4, x2=width - 4, y1=middle, y2=middle, class_="grid")]
    for method, e in found.items():
        x, colour = at(e.value), method_class(method)
        if method == REFERENCE:
            parts.append(tag("line", x1=x, x2=x, y1=2, y2=20, class_=f"line {colour}"))
        elif method == best:
            parts.append(tag("line", x1=at(e.low), x2=at(e.high), y1=middle, y2=middle, class_=f"line {colour}"))
            parts.append(tag("path", d=f"M{x:g} 5.5l5.5 5.5l-5.5 5.5l-5.5 -5.5z", class_=f"dot {colour}"))
        elif method != MODEL:
            parts.append(tag("circle", cx=x, cy=middle, r=3, class_=f"hollow {colour}"))
    if MODEL in found:
        e = found[MODEL]
        parts.append(tag("line", x1=at(e.low), x2=at(e.high), y1=middle, y2=middle, class_=f"line {method_class(MODEL)}"))
        parts.append(tag("circle", cx=at(e.value), cy=middle, r=5, class_=f"dot {method_class(MODEL)}"))
    about = "; ".join(f"{method} {short(e.value)}" for method, e in found.items())
    return picture(name, about, width, 22, parts, "strip")


def strip_legend() -> Markup:
    """The marks of the last column."""
    return tag("p", "● model, ◆ best baseline, ○ other methods, | reference; lines are 95 % intervals.", class_="note wide")


def every_method(part: dict[str, Any], metrics: dict[str, dict[str, Any]], ordered: list[str]) -> Markup:
    """All methods with their intervals, after what was attempted and what failed."""
    attempts = mapping(part.get("attempts"))
    methods = list(dict.fromkeys([*map(str, attempts), *(m for name in ordered for m in estimates(metrics[name]))]))
    rows: list[list[Child]] = []
    for key in ("attempted", "failed"):
        counts = [number(mapping(attempts.get(method)).get(key)) for method in methods]
        rows.append([f"conformations {key}", "", *("–" if count is None else f"{count:,.0f}" for count in counts), ""])
    for name in ordered:
        found = estimates(metrics[name])
        most = max(e.polymers for e in found.values())
        cells = [cell(found.get(method)) for method in methods]
        rows.append([label(name), shorten(str(metrics[name].get("unit", "")), 30), *cells, str(most)])
    return table("All methods: mean over polymers and 95 % interval", ["metric", "unit", *methods, "polymers"], rows, numbers_from=2)


def protocols(part: dict[str, Any], metrics: dict[str, dict[str, Any]]) -> Markup:
    """The protocol of the suite, why conformations failed, and a sentence for each metric."""
    terms = [(str(name).replace("_", " "), str(text)) for name, text in mapping(part.get("protocol")).items()]
    for method, attempts in mapping(part.get("attempts")).items():
        reasons = mapping(mapping(attempts).get("reasons"))
        terms += [(f"failed, {method}", f"{count} × {reason}") for reason, count in reasons.items()]
    terms += [(name, str(metric.get("protocol", ""))) for name, metric in metrics.items()]
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", text)) for name, text in terms))


def details(summary: str, content: Markup, *, opened: bool = False) -> Markup:
    """Something that opens on demand."""
    return tag("details", tag("summary", summary), content, open="" if opened else None)


def polymers_of(results: dict[str, Any]) -> int:
    """How many polymers were evaluated."""
    count = number(mapping(results.get("protocol")).get("num_polymers"))
    return int(count) if count is not None else len(listing(results.get("polymers")))
