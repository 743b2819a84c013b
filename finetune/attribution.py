"""Which atoms of a repeat unit a prediction comes from, to first order.

An atom's share is what the prediction of the Gaussian process would change by, to first order, if the atom were taken away: from the
environments that are centred on it, and from its features in the 2-D encoder of the pretrained model. Descriptors and sizes belong to no
atom and are left out, so shares do not add up to the prediction.

Source: gradient times input, Shrikumar et al. 2017, arXiv:1704.02685.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.chem.fingerprint import centred_environments
from data_shards.schema import UnitTopology
from finetune.polymers import Polymers
from finetune.predictor import Predictor


def atom_shares(predictor: Predictor, polymers: Polymers, row: int, unit: UnitTopology, model: Any) -> NDArray[np.float64]:
    """(n,) share of each slot of a unit, in learned values; stars have none.

    Args:
        predictor: with a Gaussian process.
        polymers, row: the polymer.
        unit: its repeat unit.
        model: pretrained; one without a 2-D encoder `graph` contributes nothing.
    """
    assert predictor.posterior is not None
    given = {name: x.clone().requires_grad_() for name, x in predictor.scales.inputs(polymers, np.array([row])).items()}
    value = predictor.posterior.mean(given)[0]
    gradient = dict(zip(given, torch.autograd.grad(value, list(given.values())), strict=True))
    scale = float(predictor.scales.deviation[0])
    by_bit = gradient["counts"][0].numpy() / max(unit.num_atoms - 2, 1)
    counts = polymers.features.counts[row]
    centred = centred_environments(unit)
    listed = np.bincount(np.concatenate([np.array(bits, dtype=np.int64) for bits in centred]), minlength=len(counts))
    each = by_bit * counts / np.maximum(listed, 1)  # environments that are listed but not counted share with those that are
    shares = np.array([each[bits].sum() for bits in centred])
    return scale * (shares + _through_graph(gradient["embedding"][0], predictor, unit, model))


def _through_graph(gradient: torch.Tensor, predictor: Predictor, unit: UnitTopology, model: Any) -> NDArray[np.float64]:
    """(n,) derivative of the prediction by a factor on each atom's features in the 2-D encoder."""
    from foundation.sampling.embedding import graph_condition

    graph = getattr(model, "graph", None)
    if graph is None or not hasattr(graph, "atom"):
        return np.zeros(unit.num_atoms)
    gate = torch.ones(unit.num_atoms, 1, requires_grad=True)
    weight = gradient * torch.from_numpy(predictor.scales.vectors["embedding"].factor)
    with ExitStack() as stack:
        for table in graph.atom.values():
            handle = table.register_forward_hook(lambda _, __, found: found * gate)
            stack.callback(handle.remove)
        vector = model.embed(graph_condition(unit)).chain[0]
    found = torch.autograd.grad((vector.double() * weight[: len(vector)]).sum(), gate)[0]
    return np.asarray(found[:, 0].double().numpy())


__all__ = ["atom_shares"]
