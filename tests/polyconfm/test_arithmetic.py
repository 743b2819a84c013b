"""Operations of a step by formula against what torch counts in one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from foundation.batch import Batch
from foundation.objectives.polyconfm import model as model_file
from foundation.objectives.polyconfm.arithmetic import Flops, Sizes, step_flops
from tests.polyconfm.chains import batch_of, model_of, rng


def forward(query: Any, key: Any, value: Any, *_: object, out_shape: object = None, **__: object) -> int:
    return sdpa_flop_count(query, key, value)


def backward(grad: Any, query: Any, key: Any, value: Any, *_: object, out_shape: object = None, **__: object) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


FUSED_ON_CPU = {  # torch counts the fused attention of CUDA alone
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
}


@pytest.mark.parametrize("seed", [0, 1, 2, 5])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"width": 64, "num_heads": 2, "trunk_layers": 3, "local_layers": 1, "sequence_layers": 2},
        {"token_weight": 0.1, "sequence_layers": 4},
        {"agreement_weight": 0.1, "statistics_weight": 0.1, "trunk_layers": 4},
    ],
)
def test_the_formula_is_within_a_hundredth_of_torchs_counter(seed: int, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = model_of("torsional", "torsion", **fields), batch_of()
    masks: list[torch.Tensor] = []
    draw = model_file.draw_mask
    monkeypatch.setattr(model_file, "draw_mask", lambda *arguments: masks.append(draw(*arguments)) or masks[-1])
    with FlopCounterMode(display=False, custom_mapping=FUSED_ON_CPU) as ahead:
        loss = model.loss(batch, rng(seed)).loss
    with FlopCounterMode(display=False, custom_mapping=FUSED_ON_CPU) as back:
        loss.backward()
    total = sum(step_flops(model.config, Sizes.of(batch, masks[0])).values(), Flops())
    assert total.forward == pytest.approx(ahead.get_total_flops(), rel=0.01)
    assert total.backward == pytest.approx(back.get_total_flops(), rel=0.01)


def test_operations_grow_with_what_they_depend_on(batch: Batch) -> None:
    config = model_of("torsional", "torsion").config
    mask = torch.arange(len(batch.unit_chain)) % 2 == 0
    small = step_flops(config, Sizes.of(batch, mask))
    all_masked = step_flops(config, Sizes.of(batch, torch.ones_like(mask)))
    assert all_masked["local head"].total == pytest.approx(small["local head"].total * len(mask) / mask.sum().item())
    assert all_masked["trunk"].total < small["trunk"].total  # the encoder sees visible units alone
    assert all_masked["3-D encoder"].forward == small["3-D encoder"].forward
    assert (
        all_masked["3-D encoder"].backward < small["3-D encoder"].backward
    )  # masked units are encoded for the orientation head, which does not train the trunk


def test_heads_without_a_formula_are_refused(batch: Batch) -> None:
    config = model_of("cartesian", "torsion").config
    with pytest.raises(ValueError, match="torsional and torsion"):
        step_flops(config, Sizes.of(batch, torch.ones(len(batch.unit_chain), dtype=torch.bool)))
