"""A bidirectional nn.GRU run in fewer, larger steps, for training on a CPU: the same values.

nn.GRU goes through one direction after the other, and its backward pass adds up the weights' gradients frame by frame.
Here both directions share each step, and all that does not depend on the step before is done for all frames at once.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def run_gru(gru: nn.GRU, sequence: Tensor) -> Tensor:
    """Return what `gru(sequence)[0]` does, (T, N, 2 · hidden) from (T, N, features); its dropout included."""
    for layer in range(gru.num_layers):
        if layer:
            sequence = F.dropout(sequence, gru.dropout, gru.training)
        weights = [
            torch.stack([getattr(gru, f"{name}_l{layer}"), getattr(gru, f"{name}_l{layer}_reverse")])
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ]
        # Direction, frame in the order of reading, image, features.
        inputs = torch.stack([sequence, sequence.flip(0)])
        from_inputs = torch.baddbmm(weights[2].unsqueeze(1), inputs.flatten(1, 2), weights[0].transpose(1, 2))
        states = _Steps.apply(from_inputs.unflatten(1, sequence.shape[:2]), weights[1], weights[3])
        sequence = torch.cat([states[0], states[1].flip(0)], 2)
    return sequence


class _Steps(torch.autograd.Function):
    """The states (D, T, N, H) of D directions from what their inputs give to the gates (D, T, N, 3H).

    Gates r, z, n stand in this order, as in nn.GRU: n = tanh(x_n + r · h_n), h' = n + z · (h - n).
    """

    @staticmethod
    def forward(ctx: Any, from_inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        directions, frames, count, _ = from_inputs.shape
        hidden = weight.shape[2]
        states = from_inputs.new_zeros(directions, frames + 1, count, hidden)
        gates = torch.empty_like(from_inputs)
        candidates = from_inputs.new_empty(directions, frames, count, hidden)
        """h_n, the state's part in n before r is applied."""
        transposed, bias = weight.transpose(1, 2), bias.unsqueeze(1)
        for frame in range(frames):
            before = states[:, frame]
            from_state = torch.baddbmm(bias, before, transposed)
            gate = gates[:, frame]
            torch.add(
                from_inputs[:, frame, :, : 2 * hidden], from_state[..., : 2 * hidden], out=gate[..., : 2 * hidden]
            )
            opened = gate[..., : 2 * hidden].sigmoid_()
            candidates[:, frame] = from_state[..., 2 * hidden :]
            new = gate[..., 2 * hidden :]
            torch.addcmul(
                from_inputs[:, frame, :, 2 * hidden :], opened[..., :hidden], from_state[..., 2 * hidden :], out=new
            ).tanh_()
            torch.lerp(new, before, opened[..., hidden:], out=states[:, frame + 1])
        ctx.save_for_backward(states, gates, candidates, weight)
        return states[:, 1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        states, gates, candidates, weight = ctx.saved_tensors
        before, frames = states[:, :-1], grad.shape[1]
        reset, update, new = gates.chunk(3, 3)
        # How much each gate's sum moves the state after it: all frames at once, the steps only multiply by it.
        to_new = (1 - update) * (1 - new.square())
        to_update = (before - new) * update * (1 - update)
        to_reset = to_new * candidates * reset * (1 - reset)
        to_gates = torch.stack([to_reset, to_update, to_new * reset], 3)
        from_gates = torch.empty_like(to_gates)
        state_grads = torch.empty_like(new, memory_format=torch.contiguous_format)
        carried = torch.zeros_like(state_grads[:, 0])
        for frame in reversed(range(frames)):
            state = torch.add(grad[:, frame], carried, out=state_grads[:, frame])
            step = torch.mul(state.unsqueeze(2), to_gates[:, frame], out=from_gates[:, frame])
            carried = torch.baddbmm(state * update[:, frame], step.flatten(2), weight)
        from_state = from_gates.flatten(3).flatten(1, 2)
        weight_grad, bias_grad = from_state.transpose(1, 2) @ before.flatten(1, 2), from_state.sum(1)
        torch.mul(state_grads, to_new, out=from_gates[:, :, :, 2])
        return from_gates.flatten(3), weight_grad, bias_grad
