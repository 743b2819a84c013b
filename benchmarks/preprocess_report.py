"""What follows from the cases of benchmarks.preprocess: ratios, exponents, the page."""

from __future__ import annotations

from typing import Any

POLYMERS = {
    "polystyrene": "*CC(*)c1ccccc1",
    "poly(methyl methacrylate)": "*CC(*)(C)C(=O)OC",
    "poly(ethylene oxide)": "*CCO*",
    "poly(lactic acid)": "*OC(C)C(*)=O",
    "nylon-6": "*NC(=O)CCCCC(*)=O",
    "bisphenol A polycarbonate": "*Oc1ccc(C(C)(C)c2ccc(OC(*)=O)cc2)cc1",
}
UNITS = (50, 100, 200, 500, 1000)
RIVAL_UNITS = (10, 50, 100)
COMPARED_UNITS = 50
RIVALS: dict[str, dict[str, Any]] = {
    "ETKDGv3": {"builder": "etkdg"},
    "random walk": {"builder": "random_walk", "relaxed": True},
    "random walk, not relaxed": {"builder": "random_walk", "relaxed": False},
}
MIN_RATIO, MAX_EXPONENT = 50.0, 1.15


def exponent(units: list[int], seconds: list[list[float]], draws: int = 2000) -> tuple[float, float, float]:
    """Slope of log mean time against log length by least squares, with the 95 % interval of a bootstrap over the chains of each length.

    Means, as a chain that meets a dead end costs more: medians of short chains would leave that out, and long ones always meet some.

    Args:
        units: (L,) lengths.
        seconds: L lists of times.
        draws: of the bootstrap.
    """
    import numpy as np

    x = np.log(units) - np.log(units).mean()
    rng = np.random.default_rng(0)

    def slope(log_means: Any) -> Any:
        return log_means @ x / (x @ x)

    again = np.stack([np.log(np.asarray(s)[rng.integers(len(s), size=(draws, len(s)))].mean(axis=1)) for s in seconds], axis=1)
    low, high = np.percentile(slope(again), [2.5, 97.5])
    return float(slope(np.log([np.mean(s) for s in seconds]))), float(low), float(high)


def summary(cases: dict[str, Any]) -> dict[str, Any]:
    """Ratios at COMPARED_UNITS with and without what is done once per polymer, and exponents. Our time is the mean, theirs the median."""
    ratios: dict[str, Any] = {rival: {} for rival in RIVALS}
    exponents: dict[str, Any] = {}
    for name in POLYMERS:
        ours = cases[f"ours/{name}"]
        chains = ours["chains"]
        exponents[name] = exponent(list(UNITS), [chains[str(count)]["all_sec"] for count in UNITS])
        chain_sec = chains[str(COMPARED_UNITS)]["sec"]["mean"]
        library_sec = ours["unit_sec"] + ours["shapes_sec"]["median"]
        for rival in RIVALS:
            row = cases.get(f"{rival}/{name}/{COMPARED_UNITS}", {})
            if "sec" in row:
                theirs = row["sec"]["median"]
                ratios[rival][name] = {
                    "chain": theirs / chain_sec,
                    "with_library": (theirs + (row["library_sec"] or 0.0)) / (chain_sec + library_sec),
                    "at_least": row["at_least"],
                }
    lowest = {rival: min((row["chain"] for row in found.values()), default=None) for rival, found in ratios.items()}
    return {
        "ratios_at_units": COMPARED_UNITS,
        "ratios": ratios,
        "lowest_ratio": lowest,
        "exponents": exponents,
        "meets_ratio": {rival: value is not None and value >= MIN_RATIO for rival, value in lowest.items()},
        "meets_exponent": {name: value[0] <= MAX_EXPONENT for name, value in exponents.items()},
    }


def page(result: dict[str, Any]) -> str:
    """The results as Markdown."""
    facts, cases, found = result["setting"], result["cases"], result["summary"]
    lines = [
        "## Speed of the chain builder",
        "",
        f"`python -m benchmarks.preprocess`, commit {facts['commit']}, {facts['processor']}, one thread, Python {facts['python']}, RDKit "
        f"{facts['rdkit']}, OpenMM {facts['openmm']}, RadonPy {cases['radonpy']['version'] or 'not installed'}. Processor seconds. Raw "
        "numbers: [preprocess_speed.json](preprocess_speed.json).",
        "",
        f"### From a P-SMILES to a chain of {COMPARED_UNITS} units with all its hydrogens",
        "",
        "| polymer | atoms | ours: once per polymer, s | ours: a chain, s | " + " | ".join(f"{rival}, s" for rival in RIVALS) + " |",
        "|---|---:|---:|---:|" + "---:|" * len(RIVALS),
    ]
    for name in POLYMERS:
        ours = cases[f"ours/{name}"]
        chains = ours["chains"][str(COMPARED_UNITS)]
        sec = chains["sec"]
        once_sec = ours["unit_sec"] + ours["shapes_sec"]["median"]
        cells = [name, str(chains["atoms"]), f"{once_sec:.2f}", f"{sec['mean']:.3f} [{sec['min']:.3f}, {sec['max']:.3f}]"]
        for rival in RIVALS:
            row, ratio = cases.get(f"{rival}/{name}/{COMPARED_UNITS}"), found["ratios"][rival].get(name)
            more = "≥ " if row and row.get("at_least") else ""
            times = f" ({more}{ratio['chain']:.0f} ×, {more}{ratio['with_library']:.0f} ×)" if ratio else ""
            cells.append(rival_cell(row) + times)
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "Ours: mean [least, most] over chains of several sets of shapes; the others: median. In brackets: how many times our time, for a "
        "chain, and with what is done once per polymer. > and ≥: stopped at a cap, a lower bound. Least ratio of a chain: "
        + ", ".join(f"{rival} {value:.0f}" if value is not None else f"{rival} none" for rival, value in found["lowest_ratio"].items())
        + f"; wanted: {MIN_RATIO:g}.",
        "",
        "### The other lengths",
        "",
        "| polymer | units | ours, s | " + " | ".join(f"{rival}, s | clashes per chain" for rival in RIVALS) + " |",
        "|---|---:|---:|" + "---:|---:|" * len(RIVALS),
    ]
    for name in POLYMERS:
        for units in RIVAL_UNITS:
            own = cases[f"ours/{name}"]["chains"].get(str(units))
            cells = [name, str(units), f"{own['sec']['mean']:.3f}" if own else ""]
            for rival in RIVALS:
                row = cases.get(f"{rival}/{name}/{units}")
                clashes = f"{row['clashes_per_chain']:.1f}" if row and "clashes_per_chain" in row else ""
                cells += [rival_cell(row), clashes]
            lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "### Cost against length",
        "",
        "| polymer | " + " | ".join(f"{units} units, s" for units in UNITS) + " | exponent [95 %] | dead ends per unit | clashes |",
        "|---|" + "---:|" * (len(UNITS) + 3),
    ]
    for name in POLYMERS:
        chains = cases[f"ours/{name}"]["chains"]
        times = " | ".join(f"{chains[str(units)]['sec']['mean']:.3f}" for units in UNITS)
        value, low, high = found["exponents"][name]
        ends = ", ".join(f"{chains[str(units)]['dead_ends_per_unit']:.2f}" for units in (UNITS[0], UNITS[-1]))
        clashes = sum(row["clashes_per_chain"] * row["sec"]["count"] for row in chains.values())
        lines.append(f"| {name} | {times} | {value:.2f} [{low:.2f}, {high:.2f}] | {ends} | {clashes:.0f} |")
    lines += ["", f"Means; the exponent is to be at most {MAX_EXPONENT:g}. Dead ends per unit: at {UNITS[0]} and {UNITS[-1]} units."]
    if "corpus" in cases:
        row = cases["corpus"]
        sec = row["core_sec"]
        lines += [
            "",
            f"### Corpus: {row['rows']} random rows, 10 units, 1 conformation",
            "",
            f"{row['chains_per_core_sec']:.2f} chains per second and core through standardise, conform, quality and encode; core-seconds a "
            f"row: median {sec['median']:.2f}, mean {sec['mean']:.2f}, 90th percentile {sec['p90']:.2f}, most {sec['max']:.2f}. Funnel: "
            + ", ".join(f"{reason} {count}" for reason, count in row["funnel"].items())
            + ".",
        ]
    lines += [
        "",
        "### Molecular dynamics, MMFF94s, polystyrene",
        "",
        "| atoms | OpenMM, vacuum, steps/s | RDKit in a Python loop, vacuum, steps/s | ratio | OpenMM, theta, steps/s | ratio to RDKit "
        "| set-up OpenMM, s | set-up RDKit, s |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in (row for key, row in cases.items() if key.startswith("dynamics/")):
        vacuum, loop, theta = (row[name]["steps_per_sec"]["median"] for name in ("openmm", "rdkit", "openmm_theta"))
        setup = " | ".join(f"{row[name]['setup_sec']:.2f}" for name in ("openmm", "rdkit"))
        lines.append(
            f"| {row['atoms']:,} | {vacuum:,.0f} | {loop:,.0f} | {vacuum / loop:.1f} | {theta:,.0f} | {theta / loop:.1f} | {setup} |"
        )
    return "\n".join(lines) + "\n"


def rival_cell(row: dict[str, Any] | None) -> str:
    """Median seconds of another builder, or why there are none."""
    if row is None:
        return "not run"
    if "skipped" in row:
        return f"skipped: {row['skipped']}"
    if "sec" not in row:
        return f"failed after {row['failures'][0]['sec']:.0f} s"
    return f"{'> ' if row['at_least'] else ''}{row['sec']['median']:.2f}"
