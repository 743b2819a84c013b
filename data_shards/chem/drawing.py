"""Repeat units drawn with a number on each atom as its colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem.Draw import rdMolDraw2D

COLUMNS = 5
PANEL = 260  # pixels


def coloured_sheet(psmiles: Sequence[str], values: Sequence[NDArray[np.floating]], legends: Sequence[str]) -> str:
    """Repeat units side by side as SVG: red atoms have positive values, blue ones negative, by one scale for all.

    Args:
        psmiles: canonical, so that atoms come in the order of slots.
        values: (n,) of each.
        legends: below each.
    """
    most = max(float(np.abs(own).max()) for own in values) or 1.0
    mols = [Chem.MolFromSmiles(own) for own in psmiles]
    sheet = rdMolDraw2D.MolDraw2DSVG(COLUMNS * PANEL, -(-len(mols) // COLUMNS) * PANEL, PANEL, PANEL)
    options: Any = sheet.drawOptions()
    options.legendFontSize = 16
    options.useBWAtomPalette()
    colours = [{k: _colour(float(value) / most) for k, value in enumerate(own)} for own in values]
    atoms = [list(own) for own in colours]
    bonds: list[list[int]] = [[] for _ in mols]
    sheet.DrawMolecules(mols, legends=list(legends), highlightAtoms=atoms, highlightBonds=bonds, highlightAtomColors=colours)
    sheet.FinishDrawing()
    return str(sheet.GetDrawingText())


def sheet(psmiles: Sequence[str], legends: Sequence[str]) -> str:
    """Repeat units side by side as SVG.

    Args:
        psmiles: of each.
        legends: below each.
    """
    mols = [Chem.MolFromSmiles(own) for own in psmiles]
    drawn = rdMolDraw2D.MolDraw2DSVG(COLUMNS * PANEL, -(-len(mols) // COLUMNS) * PANEL, PANEL, PANEL)
    options: Any = drawn.drawOptions()
    options.legendFontSize = 16
    options.useBWAtomPalette()
    drawn.DrawMolecules(mols, legends=list(legends))
    drawn.FinishDrawing()
    return str(drawn.GetDrawingText())


def _colour(share: float) -> tuple[float, float, float]:
    """White at 0, red at 1, blue at -1."""
    away = 1 - abs(share)
    return (1.0, away, away) if share > 0 else (away, away, 1.0)


__all__ = ["coloured_sheet", "sheet"]
