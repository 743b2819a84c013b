"""Adapters: what they change, that they come back whole, and that a folder made to do harm is refused and nothing in it is run."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finetune.lora import LoraSettings, adapter_weights, attach, linear_layers, load_adapter, save_adapter
from foundation.errors import CheckpointError, InputError
from foundation.objectives import build_objective
from foundation.recipes import get_recipe
from foundation.sampling.provenance import weights_fingerprint
from foundation.train.snapshot import load_tensors, save_tensors

RAN = "the-code-of-the-file-has-run"


def model(seed: int = 0) -> nn.Module:
    """Three layers, of which one has no linear form."""
    torch.manual_seed(seed)
    return nn.ModuleDict({"trunk": nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 4)), "head": nn.Linear(4, 1)})


def output(network: Any, x: torch.Tensor) -> torch.Tensor:
    return network["head"](network["trunk"](x))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A trained adapter on model()."""
    network = model()
    settings = attach(network, LoraSettings(rank=2, targets=("trunk.0", "trunk.2")))
    for factor in adapter_weights(network).values():
        nn.init.normal_(factor)
    save_adapter(tmp_path / "adapter", network, settings)
    return tmp_path / "adapter"


def test_an_adapter_begins_as_nothing_and_only_its_factors_learn() -> None:
    network, x = model(), torch.randn(7, 6)
    before, weights = output(network, x), {name: value.clone() for name, value in network.state_dict().items()}
    settings = attach(network, LoraSettings(rank=2, targets=linear_layers(network, ("trunk",))))
    assert torch.equal(output(network, x), before)
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert sorted(tuple(value.shape) for value in trained.values()) == [(2, 5), (2, 6), (4, 2), (5, 2)]
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    for _ in range(2):
        output(network, x).square().sum().backward()
        optimizer.step()
    assert not torch.equal(output(network, x), before)
    after = {name.replace(".base_layer", ""): value for name, value in network.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in weights.items())
    assert settings.base == weights_fingerprint(model())


def test_the_layer_is_w_plus_scaled_product_of_the_factors() -> None:
    network, x = model(), torch.randn(7, 6)
    attach(network, LoraSettings(rank=3, alpha=6.0, targets=("trunk.0",)))
    factors = adapter_weights(network)
    for factor in factors.values():
        nn.init.normal_(factor)
    a, b = (next(value for name, value in factors.items() if which in name) for which in ("lora_A", "lora_B"))
    plain = model()["trunk"][0]
    torch.testing.assert_close(network["trunk"][0](x), plain(x) + 2.0 * x @ a.T @ b.T)


def test_a_saved_adapter_comes_back_to_the_last_bit(folder: Path) -> None:
    network, x = model(), torch.randn(7, 6)
    plain = output(network, x)
    settings = load_adapter(folder, network)
    assert settings.targets == ("trunk.0", "trunk.2")
    other = model()
    load_adapter(folder, other)
    assert torch.equal(output(network, x), output(other, x))
    assert not torch.allclose(output(network, x), plain)
    assert {name: value.tolist() for name, value in adapter_weights(network).items()} == {
        name: value.tolist() for name, value in load_tensors(folder / "adapter.safetensors").items()
    }


def test_it_fits_the_foundation_model() -> None:
    objective = build_objective(get_recipe("polyconfm_tiny").objective)
    targets = linear_layers(objective)
    attach(objective, LoraSettings(rank=4, targets=targets))
    assert len(adapter_weights(objective)) == 2 * len(targets) > 20
    with pytest.raises(InputError, match=r"no linear layer has a name that begins with nothing; the parts of this model are "):
        linear_layers(build_objective(get_recipe("polyconfm_tiny").objective), ("nothing",))


def test_targets_must_be_linear_layers() -> None:
    for name in ("trunk.1", "trunk", "body.0"):
        with pytest.raises(InputError, match=rf"{name} is no linear layer of this model"):
            attach(model(), LoraSettings(targets=(name,)))


def refused(folder: Path, match: str) -> None:
    """The sentence, and a model that is as it was."""
    network = model()
    with pytest.raises(CheckpointError, match=match):
        load_adapter(folder, network)
    assert weights_fingerprint(network) == weights_fingerprint(model())
    assert not adapter_weights(network)


def test_it_goes_with_the_weights_it_was_trained_on(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"adapter was trained on other weights \(sha256 [0-9a-f]{12}, given [0-9a-f]{12}\)"):
        load_adapter(folder, model(seed=1))


class Exploit:
    """Unpickled, it leaves a file."""

    def __init__(self, folder: Path) -> None:
        self.target = folder / RAN

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_a_pickle_under_the_name_of_the_weights_is_not_run(folder: Path, how: str) -> None:
    path = folder / "adapter.safetensors"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Exploit(folder)))
    else:
        torch.save({"weight": Exploit(folder)}, path)
    refused(folder, "adapter.safetensors is no safetensors file")
    assert not (folder / RAN).exists()
    pickle.loads(pickle.dumps(Exploit(folder)))
    assert (folder / RAN).exists(), "the exploit is one"


def test_the_files_of_peft_are_not_read(folder: Path) -> None:
    """A folder as peft writes it may name classes and carry pickles; here it is no adapter."""
    for path in folder.iterdir():
        path.unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Exploit(folder)))
    module = {"base_model_class": "Exploit", "parent_library": "evil"}
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "auto_mapping": module}))
    refused(folder, "adapter.json cannot be read")
    assert not (folder / RAN).exists()


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "a class to import": ({"auto_mapping": {"parent_library": "os", "base_model_class": "system"}}, "auto_mapping: Extra inputs"),
    "a path as target": ({"targets": ["../../../etc/passwd"]}, "targets.0: String should match"),
    "a pattern as target": ({"targets": ["(a+)+$"]}, "targets.0: String should match"),
    "a dunder that is no layer": ({"targets": ["trunk.__class__"]}, "names trunk.__class__, which is no linear layer"),
    "a layer that is not there": ({"targets": ["trunk.9"]}, "names trunk.9, which is no linear layer"),
    "a layer that is not linear": ({"targets": ["trunk.1"]}, "names trunk.1, which is no linear layer"),
    "no targets": ({"targets": []}, "targets: "),
    "rank 0": ({"rank": 0}, "rank: Input should be greater"),
    "a rank as large as a disk": ({"rank": 10**15}, "rank: Input should be less"),
    "another rank": ({"rank": 3}, r"has shape \(2, 6\), adapter.json asks for \(3, 6\)"),
    "alpha is no number": ({"alpha": float("nan")}, "alpha: "),
    "a sum that is none": ({"base": "../secret"}, "base: String should match"),
    "one layer less": ({"targets": ["trunk.0"]}, r"trunk.2.lora_A.default.weight has shape \(2, 5\), adapter.json asks for none"),
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_settings_that_no_adapter_has_are_refused(folder: Path, kind: str) -> None:
    changes, sentence = SETTINGS[kind]
    data = json.loads((folder / "adapter.json").read_text())
    (folder / "adapter.json").write_text(json.dumps({**data, **changes}))
    refused(folder, sentence)


@pytest.mark.parametrize("text", ["", "[]", "[" * 200_000, "!!python/object/apply:os.system [ls]", " " * (16 * 2**20 + 1)])
def test_texts_that_are_no_settings_are_refused(folder: Path, text: str) -> None:
    (folder / "adapter.json").write_text(text)
    refused(folder, r"adapter.json cannot be read \(")


def test_tensors_of_other_names_are_refused(folder: Path) -> None:
    path = folder / "adapter.safetensors"
    factors = load_tensors(path)
    save_tensors(path, {**factors, "head.weight": torch.zeros(1, 4)})
    refused(folder, r"head.weight has shape \(1, 4\), adapter.json asks for none; copy it again")
