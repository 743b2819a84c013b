"""The funnel: what went in, what each stage dropped and why, what came out; as json for programs and as a table for people."""

from __future__ import annotations

import json

from data_shards.plan import Plan

EXAMPLE_LENGTH = 60


def funnel_json(plan: Plan) -> bytes:
    """funnel.json: the stages with the rows that were left after each, and an example of every reason."""
    left, stages = plan.num_rows, [{"stage": "read", "left": plan.num_rows, "dropped": {}}]
    examples = {}
    for stage, dropped in plan.stages():
        left -= sum(dropped.values())
        stages.append({"stage": stage, "left": left, "dropped": dropped})
        for reason in dropped:
            example = plan.example(reason)
            examples[reason] = {"row": example.number, "psmiles": example.psmiles, "detail": example.detail}
    wanted, kept = plan.polymers()
    facts = {"rows": plan.num_rows, "kept": left, "polymers": wanted, "polymers_kept": kept, "stages": stages, "examples": examples}
    return json.dumps(facts, sort_keys=True, indent=1).encode() + b"\n"


def funnel_table(plan: Plan) -> str:
    """funnel.md."""
    facts = json.loads(funnel_json(plan))
    lines = ["# Funnel", "", "| stage | rows left | dropped | reason | first example |", "|---|---:|---:|---|---|"]
    for stage in facts["stages"]:
        lines.append(f"| {stage['stage']} | {stage['left']} | | | |")
        for reason, count in sorted(stage["dropped"].items(), key=lambda found: (-found[1], found[0])):
            example = facts["examples"][reason]
            written = example["psmiles"][:EXAMPLE_LENGTH].replace("|", "\\|").replace("`", "'")
            lines.append(f"| | | {count} | {reason} | row {example['row']}: `{written}` |")
    share = 100 * facts["polymers_kept"] / max(facts["polymers"], 1)
    lines += ["", f"{facts['polymers_kept']} of {facts['polymers']} polymers ({share:.1f} %) have at least one sample.", ""]
    return "\n".join(lines)
