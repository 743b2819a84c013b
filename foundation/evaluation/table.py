"""results.json as a table for the terminal and for Markdown. Everything is drawn from the file's data, nothing is computed again."""

from __future__ import annotations

from typing import Any

DIGITS = 3
WIDTH = 170  # columns where the output is no terminal
PARTS = {"unit": "Repeat units", "oligomer": "Oligomers of three units"}


def number(estimate: dict[str, Any] | None, interval: bool) -> str:
    """A value, with its interval where asked for, as text."""
    if estimate is None or estimate["value"] is None:
        return "-"
    value, low, high = (_short(estimate[key]) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]" if interval else value


def _short(value: float) -> str:
    if value != 0 and abs(value) < 10**-DIGITS:
        return f"{value:.1e}"
    return f"{value:.{DIGITS}f}" if abs(value) < 100 else f"{value:.1f}"


def rows(results: dict[str, Any], intervals: int) -> tuple[list[str], list[list[str]]]:
    """Header and rows: group, metric, unit, a cell for each method, polymers that have the metric.

    Args:
        results: content of results.json.
        intervals: how many methods, from the left, show their interval.
    """
    methods = list(results["attempts"])
    attempts, num_polymers = results["attempts"], str(results["protocol"]["num_polymers"])
    header = ["group", "metric", "unit", *methods, "polymers"]
    body = [
        ["", "conformations attempted", "", *(str(attempts[m]["attempted"]) for m in methods), num_polymers],
        ["", "conformations failed", "", *(str(attempts[m]["failed"]) for m in methods), ""],
    ]
    for name, metric in results["metrics"].items():
        own = metric["methods"]
        if own:
            most = max(estimate["num_polymers"] for estimate in own.values())
            cells = (number(own.get(m), k < intervals) for k, m in enumerate(methods))
            body.append([metric["group"], name, metric["unit"], *cells, str(most)])
    return header, body


def sections(results: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(title, numbers) of the chains, then of the parts that were measured."""
    return [("Chains", results), *((PARTS[name], part) for name, part in results.get("parts", {}).items())]


def show(results: dict[str, Any]) -> None:
    """Print the table and what failed; only the model's intervals fit on a screen."""
    from rich.console import Console
    from rich.table import Table

    screen = Console()
    screen = screen if screen.is_terminal else Console(width=WIDTH)
    for name, own in sections(results):
        header, body = rows(own, 1)
        table = Table(
            title=f"{name}: {own['protocol']['num_polymers']} polymers, {results['settings']['split']} split", title_justify="left"
        )
        for index, title in enumerate(header):
            table.add_column(title, justify="left" if index < 3 else "right", no_wrap=index in (1, 3))
        for before, row in zip([body[0], *body], body, strict=False):
            if row[0] != before[0]:
                table.add_section()
            table.add_row(*row)
        screen.print(table)
    print(f"[low, high]: {results['protocol']['interval']}")
    for name, own in sections(results):
        for method, attempts in own["attempts"].items():
            for reason, count in attempts["reasons"].items():
                print(f"{name}, {method}: {count} of {attempts['attempted']} failed: {reason}")


def markdown(results: dict[str, Any], figures: list[str]) -> str:
    """The same table as a page, with protocol and figures."""
    lines = [
        "# Evaluation",
        "",
        f"Checkpoint `{results['checkpoint']}` (weights {results['weights_sha256'][:12]}), shards `{results['shards']['path']}` "
        f"({results['shards']['fingerprint'][:12]}), split {results['settings']['split']}, {results['protocol']['num_polymers']} polymers, "
        f"{results['settings']['num']} conformations each. Commit {results['commit']}.",
        "",
        *(line for name, own in sections(results) for line in _page(name, own)),
        *(f"![{name}]({name})" for name in figures),
        "",
    ]
    return "\n".join(lines)


def _page(name: str, own: dict[str, Any]) -> list[str]:
    """Lines of one section: the table, its protocol, how each metric is measured."""
    header, body = rows(own, len(own["attempts"]))
    return [
        f"## {name}",
        "",
        "| " + " | ".join(header) + " |",
        "|" + "|".join(["---", "---", "---", *["---:"] * (len(header) - 3)]) + "|",
        *("| " + " | ".join(row) + " |" for row in body),
        "",
        *(f"- {key.replace('_', ' ')}: {text}" for key, text in own["protocol"].items()),
        "",
        "| metric | how it is measured | conformations that failed |",
        "|---|---|---|",
        *(f"| {key} | {metric['protocol'].replace('|', chr(92) + '|')} | {metric['failures']} |" for key, metric in own["metrics"].items()),
        "",
    ]
