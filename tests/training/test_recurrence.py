import pytest
import torch
from torch import Tensor, nn

from captcha.training.recurrence import run_gru


def gradients(gru: nn.GRU, sequence: Tensor, states: Tensor, weights: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad((states * weights).sum(), [sequence, *gru.parameters()]))


@pytest.mark.parametrize(("frames", "count"), [(1, 1), (2, 5), (9, 3)])
def test_states_and_gradients_are_those_of_pytorchs_gru(frames: int, count: int) -> None:
    torch.manual_seed(0)
    gru = nn.GRU(6, 4, num_layers=2, bidirectional=True).double()
    sequence = torch.randn(frames, count, 6, dtype=torch.double, requires_grad=True)
    weights = torch.randn(frames, count, 8, dtype=torch.double)
    expected = gru(sequence)[0]
    states = run_gru(gru, sequence)
    torch.testing.assert_close(states, expected)
    torch.testing.assert_close(
        gradients(gru, sequence, states, weights), gradients(gru, sequence, expected, weights), rtol=1e-9, atol=1e-11
    )


def test_dropout_between_layers_is_applied_in_training_alone() -> None:
    torch.manual_seed(0)
    gru = nn.GRU(6, 4, num_layers=2, bidirectional=True, dropout=0.5)
    sequence = torch.randn(5, 3, 6)
    with torch.no_grad():
        assert not torch.equal(run_gru(gru, sequence), run_gru(gru, sequence))
        torch.testing.assert_close(run_gru(gru.eval(), sequence), gru(sequence)[0])
