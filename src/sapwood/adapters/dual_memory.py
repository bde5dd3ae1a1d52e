"""What DualLoRA keeps of finished rounds in a layer: the directions of each, gates, and the residual parts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sapwood.adapters.base import TokenChoice, summary_token
from sapwood.functional.gates import energy_ratios


class LayerMemory(nn.Module):
    """Memory of the sites that share one input of width d.

    All rounds' directions lie side by side in ``basis``, and the residual part of a round is kept as what it makes of
    them: those of all rounds together are two products of matrices, however many there are.

    Attributes:
        input_key: of the sites.
        sites: their keys.
        basis: orthonormal columns [d, m], round after round.
        live: directions [d, k] that the residual pair being learned must stay in.

    Args:
        input_key: of the sites.
        inputs: d.
        outputs: width of each site by key.
    """

    basis: Tensor
    live: Tensor
    weights: Tensor
    gate: Tensor

    def __init__(self, input_key: str, inputs: int, outputs: Mapping[str, int]) -> None:
        super().__init__()
        self.input_key = input_key
        self.sites = tuple(outputs)
        self.register_buffer("basis", torch.zeros(inputs, 0))
        self.register_buffer("live", torch.zeros(inputs, 0))
        self.register_buffer("weights", torch.zeros(0, 0))
        self.register_buffer("gate", torch.zeros(0, dtype=torch.int64))
        for key, width in outputs.items():
            self.register_buffer(f"up_{key}", torch.zeros(width, 0))
        self._bounds = [0]
        self._first = 0

    @property
    def rounds(self) -> int:
        """How many are kept."""
        return len(self._bounds) - 1

    @property
    def recalls(self) -> bool:
        """Whether there is a residual part of a finished round."""
        return len(self.gate) > 0

    @property
    def tells(self) -> Tensor:
        """Of which rounds there are directions here, bool [T]."""
        return self.weights.bool().any(0)

    def directions(self, index: int) -> Tensor:
        """Those of one round, [d, k]; -1 for the last."""
        index %= self.rounds
        return self.basis[:, self._bounds[index] : self._bounds[index + 1]]

    def append(self, basis: Tensor, mean: Tensor) -> None:
        """Keep a round's directions [d, k], and its pictures' mean share of energy in them."""
        self.basis = torch.cat([self.basis, basis.to(self.basis)], 1)
        weights = self.weights.new_zeros(self.basis.shape[1], self.rounds + 1)
        weights[: self._bounds[-1], :-1] = self.weights
        # A round without directions, or whose pictures have nothing in them, has a gate of zero.
        weights[self._bounds[-1] :, -1] = torch.where(mean > 0, 1 / mean, 0.0).to(weights)
        self.weights = weights
        self._bounds.append(self.basis.shape[1])

    def remember(self, of: int, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Keep what the last round's residual pair (A, B) of each site makes of the directions of round ``of``."""
        directions = self.directions(of).cpu().double()  # as when the pairs come from a file, bit for bit
        if not self.recalls:
            self._first = self._bounds[of % self.rounds]
        self.gate = torch.cat([self.gate, self.gate.new_full((directions.shape[1],), self.rounds - 1)])
        for key, (down, up) in pairs.items():
            kept = self.get_buffer(f"up_{key}")
            made = up.to(directions) @ (down.to(directions) @ directions)
            setattr(self, f"up_{key}", torch.cat([kept, made.to(kept)], 1))

    @torch.no_grad()
    def ratios(self, x: Tensor, token: TokenChoice, prefix: int) -> Tensor:
        """Energy of each row's summary token in each round's directions, over that round's mean: [B, T] float32."""
        return energy_ratios(summary_token(x, token, prefix).float(), self.basis, self.weights)

    def inner(self, x: Tensor, ratios: Tensor) -> Tensor:
        """Parts of x [B, ..., d] along the directions that residual parts act on, each times its round's gate."""
        along = x @ self.basis[:, self._first : self._first + len(self.gate)].to(x.dtype)
        gates = ratios.clamp(max=1)[:, self.gate].to(x.dtype)
        return along * gates.reshape(x.shape[0], *[1] * (x.ndim - 2), -1)

    def recall(self, key: str, inner: Tensor) -> Tensor:
        """What the finished rounds' residual parts add to a site's output."""
        return inner @ self.get_buffer(f"up_{key}").T.to(inner.dtype)
