"""1-D branch: a transformer over the tokens of the P-SMILES, trained inside the model.

Stereo marks are left out of the token stream: configuration enters as handedness (an odd feature of the atoms), and a string whose @
flips under reflection would break the parity of the network.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from foundation.batch import Condition, dense_mask, to_dense
from foundation.errors import InputError
from foundation.nn.parity import rotary

_ELEMENTS = """
    H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd
    In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np
    Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og""".split()  # noqa: SIM905, the table reads as a table
_AROMATIC = ["b", "c", "n", "o", "p", "s", "se", "te", "as", "si"]
_SYMBOLS = [*"*()[].-=#$:/\\+%", *"0123456789"]
VOCABULARY = ["<pad>", "<start>", *_SYMBOLS, *_AROMATIC, *_ELEMENTS]
_INDEX = {token: i for i, token in enumerate(VOCABULARY)}
_PIECE = re.compile(r"\[[^\]]*\]|Cl|Br|.")
_INSIDE = re.compile(r"se|te|as|si|[A-Z][a-z]?|[bcnops]|[-+*0-9:]")


def tokenise(psmiles: str) -> list[int]:
    """Vocabulary ids of a P-SMILES, start token first, stereo marks left out.

    Raises:
        InputError: a character that no token covers.
    """
    ids = [_INDEX["<start>"]]
    for piece in _PIECE.findall(psmiles.replace("@", "")):
        bracket = len(piece) > 2
        tokens = _INSIDE.findall(piece[1:-1]) if bracket else [piece]
        if "".join(tokens) != piece[bracket : len(piece) - bracket] or any(t not in _INDEX for t in tokens):
            raise InputError(f"P-SMILES {psmiles!r} has {piece!r}, which is no token; write atoms as RDKit does")
        ids += [_INDEX["["]] * bracket + [_INDEX[t] for t in tokens] + [_INDEX["]"]] * bracket
    return ids


class _Layer(nn.Module):
    recomputable = True

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor, position: Tensor) -> Tensor:
        rows, length, width = x.shape
        query, key, value = self.qkv(self.norm_1(x)).view(rows, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(
            rotary(query, position), rotary(key, position), value, attn_mask=mask[:, None, None]
        )
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        return x + self.mlp(self.norm_2(x))


class SequenceEncoder(nn.Module):
    """(B, D) one vector a chain from its P-SMILES tokens."""

    def __init__(self, width: int, num_layers: int, num_heads: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(VOCABULARY), width)
        self.layers = nn.ModuleList(_Layer(width, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, condition: Condition) -> Tensor:
        return self.norm(self.states(condition)[:, 0])

    def states(self, condition: Condition, hidden: Tensor | None = None, substitute: Tensor | None = None) -> Tensor:
        """(B, longest, D) of every token, before the norm.

        Args:
            hidden: (B, longest) bool, tokens that are not shown.
            substitute: (D,) shown in their place.
        """
        width = int(condition.token_ptr.diff().max())
        token = to_dense(condition.token_id, condition.token_ptr, width)  # (B, L)
        mask = dense_mask(condition.token_ptr, width)
        position = torch.arange(width, device=token.device)[None].expand_as(token)
        x = self.embed(token)
        if hidden is not None and substitute is not None:
            x = torch.where(hidden[..., None], substitute, x)
        for layer in self.layers:
            x = layer(x, mask, position)
        return x
