"""A P-SMILES language model: what the generator is compared with. Causal transformer over tokens, told the properties first.

It reads what the generator reads, as strings that begin at either star, and is drawn from with the same guidance: logits of what was asked
and of nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem
from torch import Tensor, nn

from data_shards.chem.psmiles import atoms_of, canonicalise, parse
from finetune.design.train import Descent, Log, TrainSettings
from foundation.encoders.sequence import VOCABULARY, tokenise
from foundation.nn.embedding import FourierFeatures

END = 0  # the padding token ends a string
LONGEST = 160  # tokens
POOL = 16  # batches that are drawn at once


@dataclass(frozen=True)
class LanguageConfig:
    """Sizes; with the defaults about as many weights as a generator."""

    width: int = 160
    num_layers: int = 6
    num_heads: int = 8
    num_properties: int = 0


class LanguageModel(nn.Module):
    """Logits (B, L, V) of the next token."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        d = config.width
        self.token, self.place = nn.Embedding(len(VOCABULARY), d), nn.Embedding(LONGEST, d)
        self.properties = nn.ModuleList(FourierFeatures(d) for _ in range(config.num_properties))
        self.nothing = nn.Parameter(torch.zeros(config.num_properties, d))
        layer = nn.TransformerEncoderLayer(d, config.num_heads, 4 * d, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, config.num_layers, enable_nested_tensor=False)
        self.norm, self.out = nn.LayerNorm(d), nn.Linear(d, len(VOCABULARY))

    def forward(self, tokens: Tensor, properties: Tensor) -> Tensor:
        """Logits after each token; NaN properties are not told."""
        x = self.token(tokens) + self.place(torch.arange(tokens.shape[1]))
        for k, embed in enumerate(self.properties):
            there = ~properties[:, k].isnan()
            told = torch.where(there[:, None], embed(torch.where(there, properties[:, k], 0.0)), self.nothing[k])
            x = x + told[:, None]
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return torch.as_tensor(self.out(self.norm(self.layers(x, mask=mask, is_causal=True))))


def spelled(psmiles: str) -> list[str]:
    """The unit as SMILES that begin at its one and at its other star."""
    mol = parse(canonicalise(psmiles).plain)
    stars = [atom.GetIdx() for atom in atoms_of(mol) if atom.GetAtomicNum() == 0]
    return [Chem.MolToSmiles(mol, rootedAtAtom=star) for star in stars]


def train_language(
    psmiles: Sequence[str],
    properties: NDArray[np.float32],
    weight: NDArray[np.float64],
    config: LanguageConfig,
    settings: TrainSettings,
    seed: int,
    tell: Log | None = None,
    batch: int = 64,
) -> LanguageModel:
    """Train on polymers with standardised properties, NaN where unknown, each read as often as its weight says.

    Args:
        psmiles, properties, weight: (G,), (G, P) and (G,).
        config: sizes.
        settings: steps, learning rate and shares that are not told, as the generator's.
        seed: of everything drawn.
        tell: called after every step with its loss.
        batch: strings of a step.
    """
    strings, rows = [], []
    for row, text in enumerate(psmiles):
        for own in spelled(text):
            ids = tokenise(own)
            if len(ids) < LONGEST:
                strings.append(ids)
                rows.append(row)
    places = np.array(rows)
    chance = weight[places] / weight[places].sum()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LanguageModel(config)
    descent = Descent(model, settings)
    rng = np.random.default_rng([seed, 5])
    length, waiting = np.array([len(own) for own in strings]), np.zeros((0, batch), dtype=np.int64)
    for step in range(settings.steps):
        if not len(waiting):  # strings of like length together, so that little is padding
            drawn = rng.choice(len(strings), POOL * batch, p=chance)
            waiting = rng.permutation(drawn[np.argsort(length[drawn], kind="stable")].reshape(POOL, batch))
        chosen, waiting = waiting[0], waiting[1:]
        longest = max(len(strings[k]) for k in chosen) + 1
        tokens = torch.tensor([strings[k] + [END] * (longest - len(strings[k])) for k in chosen])
        told = properties[places[chosen]].copy()
        nothing = rng.random(batch) < settings.drop_all
        told[(rng.random(told.shape) < settings.drop_each) | nothing[:, None]] = np.nan
        logits = model(tokens[:, :-1], torch.from_numpy(told))
        inside = torch.cat([torch.ones(batch, 1, dtype=torch.bool), tokens[:, 1:-1] != END], 1)  # up to the token that ends the string
        loss = nn.functional.cross_entropy(logits[inside], tokens[:, 1:][inside])
        descent.step(loss, step)
        if tell is not None:
            tell(step + 1, {"design/loss": loss.item()})
    descent.settle()
    return model.eval()


@torch.no_grad()
def speak(model: LanguageModel, properties: Tensor, guidance: float, rng: torch.Generator) -> list[str]:
    """A string for each row of (B, P) standardised properties, drawn token by token."""
    tokens = torch.tensor([tokenise("")[:1]]).expand(len(properties), 1)
    ended = torch.zeros(len(properties), dtype=torch.bool)
    for _ in range(LONGEST - 1):
        logits = torch.zeros(len(tokens), len(VOCABULARY))
        logits[~ended] = _next_token(model, tokens[~ended], properties[~ended], guidance)  # what has ended costs nothing
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=rng)
        drawn[ended] = END
        ended |= drawn[:, 0] == END
        tokens = torch.cat([tokens, drawn], 1)
        if ended.all():
            break
    return ["".join(VOCABULARY[k] for k in row if k != END) for row in tokens[:, 1:].tolist()]


def _next_token(model: LanguageModel, tokens: Tensor, properties: Tensor, guidance: float) -> Tensor:
    """(B, V) guided logits of the token after (B, L)."""
    logits = model(tokens, properties)[:, -1].log_softmax(-1)
    if guidance == 1:
        return logits
    other = model(tokens, torch.full_like(properties, math.nan))[:, -1].log_softmax(-1)
    return torch.as_tensor(other + guidance * (logits - other))


__all__ = ["LanguageConfig", "LanguageModel", "speak", "spelled", "train_language"]
