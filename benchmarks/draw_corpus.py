"""Draw a seeded sample of polymers from a corpus table: ``python benchmarks/draw_corpus.py corpus.csv --out drawn.csv --num 560``.

Rows marked heldout or heldout_twin are left out, and so are polymers named by --leave-out, under any spelling.
"""

from __future__ import annotations

import argparse
import csv
import random
from pathlib import Path

from data_shards.chem.psmiles import canonicalise
from data_shards.errors import PolymerError


def main() -> None:
    """Write one column, psmiles, one row a polymer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path, help="CSV with psmiles, n_heavy_atoms, heldout, heldout_twin")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num", type=int, default=560, help="polymers")
    parser.add_argument("--max-heavy-atoms", type=int, default=30, help="of a repeat unit, stars not counted")
    parser.add_argument("--leave-out", nargs="*", default=["*CC(*)c1ccccc1"], help="P-SMILES to keep unseen")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    unseen = {canonicalise(psmiles).group for psmiles in arguments.leave_out}
    with arguments.corpus.open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if not r["heldout"] and not r["heldout_twin"]]
    rows = [r for r in rows if int(r["n_heavy_atoms"]) <= arguments.max_heavy_atoms]
    random.Random(arguments.seed).shuffle(rows)
    drawn: dict[str, str] = {}
    for row in rows:
        if len(drawn) == arguments.num:
            break
        try:
            group = canonicalise(row["psmiles"]).group
        except PolymerError:
            continue  # the build would list it in its funnel; here only usable strings are counted
        if group not in unseen:
            drawn.setdefault(group, row["psmiles"])
    with arguments.out.open("w", newline="") as file:
        csv.writer(file).writerows([["psmiles"], *([psmiles] for psmiles in drawn.values())])
    print(f"{len(drawn)} polymers -> {arguments.out}")


if __name__ == "__main__":
    main()
