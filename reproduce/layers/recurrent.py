"""LSTM, RNN and LSTMUnit.

Follows `recurrent_layer.cpp`, `lstm_layer.cpp`, `lstm_unit_layer.cpp` and `rnn_layer.cpp` of BVLC/caffe at
9b891540, which unroll a net over T steps; here a loop does. As in Caffe the last state is carried into the
next forward pass (unless states are bottoms, expose_hidden), initial states get no gradient and final
states hand none back. Departure: a change of batch size starts from state 0 again; `reset` does so at will.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as nnf

from reproduce.layers.base import Definition, Filler, Layer


class Recurrent(Layer):
    """Bottoms x (T, N, ...), cont (T, N), perhaps a static input (N, ...), perhaps initial states."""

    state_count = 1

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        self.param = definition.recurrent_param
        self.exposed = self.param.expose_hidden
        self.static = len(definition.bottom) > 2 + (self.state_count if self.exposed else 0)
        self.state: list[Tensor] = []

    def reset(self) -> None:
        """Forget the state carried from the last forward pass."""
        self.state = []

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x, cont = bottoms[0].flatten(2), bottoms[1].detach()
        projected = nnf.linear(x, blobs[0], blobs[1])  # (T, N, gates)
        if self.static:
            projected = projected + nnf.linear(bottoms[2].flatten(1), blobs[2])
        state = self.initial(bottoms, projected)
        outputs = []
        for step, carry in zip(projected, cont, strict=True):
            output, state = self.advance(step, carry.reshape(-1, 1), state, blobs)
            outputs.append(output)
        final = [s.detach() for s in state]
        if not self.exposed:
            self.state = final
        tops = [torch.stack(outputs)]
        return tops + [s.unsqueeze(0) for s in final] if self.exposed else tops

    def initial(self, bottoms: list[Tensor], like: Tensor) -> list[Tensor]:
        """The states before the first step, each (N, num_output)."""
        shape = (like.shape[1], self.param.num_output)
        if self.exposed:
            return [b.detach().reshape(shape) for b in bottoms[-self.state_count :]]
        if self.state and self.state[0].shape == shape:
            return [s.to(like) for s in self.state]
        return [like.new_zeros(shape) for _ in range(self.state_count)]

    def advance(
        self, step: Tensor, carry: Tensor, state: list[Tensor], blobs: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Output and new states of one step; `carry` (N, 1) is 0 where a sequence begins."""
        raise NotImplementedError


class LSTM(Recurrent):
    """Blobs: input weights (4n, in), bias, perhaps static weights, hidden weights (4n, n)."""

    state_count = 2

    def advance(
        self, step: Tensor, carry: Tensor, state: list[Tensor], blobs: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        h, c = state
        gates = step + nnf.linear(carry * h, blobs[-1])
        c, h = lstm_unit(c, gates, carry)
        return h, [h, c]

    def fillers(self) -> list[Filler]:
        weight, bias = self.param.weight_filler, self.param.bias_filler
        return [weight, bias, *[weight] * self.static, weight]


class RNN(Recurrent):
    """h = tanh(W_hh h + W_xh x + b), output tanh(W_ho h + b_o)."""

    def advance(
        self, step: Tensor, carry: Tensor, state: list[Tensor], blobs: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        hidden_weight, output_weight, output_bias = blobs[-3:]
        h = torch.tanh(step + nnf.linear(carry * state[0], hidden_weight))
        return torch.tanh(nnf.linear(h, output_weight, output_bias)), [h]

    def fillers(self) -> list[Filler]:
        weight, bias = self.param.weight_filler, self.param.bias_filler
        return [weight, bias, *[weight] * self.static, weight, weight, bias]


class LSTMUnit(Layer):
    """One LSTM step after its products: bottoms c (1, N, n), gates (1, N, 4n), cont (1, N); tops c and h."""

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        c, gates, cont = bottoms
        return list(lstm_unit(c, gates, cont.detach().unsqueeze(-1)))


def lstm_unit(c: Tensor, gates: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
    """New cell and output; the gates lie i, f, o, g along the last axis, `carry` scales the old cell."""
    i, f, o, g = gates.chunk(4, -1)
    c = carry * torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return c, torch.sigmoid(o) * torch.tanh(c)
