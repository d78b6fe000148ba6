import pytest
import torch

from guardtrace_trainer.muon import BETAS, EPSILON, Muon


def parameters(*shapes):
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]


def test_it_goes_downhill_with_even_steps():
    torch.manual_seed(0)
    target = torch.randn(6, 4)
    weight, frozen = torch.nn.Parameter(torch.zeros(6, 4)), torch.nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([weight, frozen], [], 0.1, 0.1)
    losses = []
    for _ in range(60):
        loss = (weight - target).pow(2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]
    assert torch.equal(frozen.detach(), torch.ones(2, 2))


@pytest.mark.parametrize("shape", [(12, 5), (5, 12)])
def test_a_matrix_steps_alike_in_all_directions(shape):
    [weight] = parameters(shape)
    before = weight.detach().clone()
    weight.grad = torch.randn(shape) @ torch.diag(torch.logspace(0, -1, shape[1]))
    Muon([weight], [], 0.1, 0.1, weight_decay=0.0).step()
    strengths = torch.linalg.svdvals(weight.detach() - before) / (0.1 * 0.2 * 12**0.5)
    assert 0.5 < strengths.min() <= strengths.max() < 1.3


def test_everything_else_steps_as_torchs_adamw_does():
    [ours], [theirs] = parameters(7), parameters(7)
    optimizers = (
        Muon([], [ours], 0.1, 0.01),
        torch.optim.AdamW([theirs], lr=0.01, betas=BETAS, eps=EPSILON, weight_decay=0.0),
    )
    for step in range(5):
        for parameter in (ours, theirs):
            parameter.grad = torch.sin(parameter.detach() + step)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_its_state_is_saved_and_read_back():
    first, again = parameters((6, 4), 3), parameters((6, 4), 3)
    whole, halved = (Muon(two[:1], two[1:], 0.1, 0.01) for two in (first, again))
    for step in range(6):
        if step == 3:
            state = halved.state_dict()
            halved = Muon(again[:1], again[1:], 0.1, 0.01)
            halved.load_state_dict(state)
        for parameter in (*first, *again):
            parameter.grad = torch.cos(parameter.detach() + step)
        whole.step()
        halved.step()
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
