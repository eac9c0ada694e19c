"""Muon: orthogonal steps, and AdamW untouched beside them."""

import copy

import torch
from torch import nn

from shapeloom.muon import COEFFICIENTS, ITERATIONS, Muon, muon_groups, orthogonalize


def test_singular_values_end_near_one() -> None:
    matrices = torch.randn(3, 20, 40, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices))
    # The quintic's fixed points: it trades exactness for speed on purpose.
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_singular_vectors_are_kept_for_wide_and_tall_matrices() -> None:
    for shape in ((1, 8, 16), (1, 16, 8)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        u, _, v = torch.linalg.svd(matrix[0], full_matrices=False)
        inner = u.T @ orthogonalize(matrix)[0] @ v.T
        off_diagonal = inner - torch.diag(inner.diagonal())
        assert off_diagonal.abs().max() < 1e-4


def test_long_matrices_get_what_five_products_with_the_matrix_give() -> None:
    """Their Gram matrices alone are iterated: with singular values down to 1e-4, in float64's company."""
    u, _, v = torch.linalg.svd(
        torch.randn(1, 24, 96, generator=torch.Generator().manual_seed(2)), full_matrices=False
    )
    matrix = u @ torch.diag_embed(torch.logspace(0, -4, 24)[None]) @ v
    expected = matrix.double() / torch.linalg.matrix_norm(matrix.double())
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = expected @ expected.transpose(1, 2)
        expected = a * expected + (b * gram + c * gram @ gram) @ expected
    torch.testing.assert_close(orthogonalize(matrix).double(), expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(
        orthogonalize(matrix.transpose(1, 2)), orthogonalize(matrix).transpose(1, 2), atol=1e-5, rtol=0
    )


def test_vectors_and_narrow_matrices_take_an_adamw_step() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32), nn.Linear(32, 3))
    other = copy.deepcopy(model)
    x = torch.randn(5, 32)
    for net in (model, other):
        net(x).pow(2).sum().backward()
    Muon(muon_groups(model, 0.0), lr=0.01, betas=(0.9, 0.98)).step()
    torch.optim.AdamW(other.parameters(), lr=0.01, betas=(0.9, 0.98), weight_decay=0.0).step()
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        same = torch.allclose(ours, theirs, atol=1e-7)
        assert same == (name != "0.weight"), name


def test_a_step_has_the_size_that_adamws_has() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 128, bias=False)
    before = layer.weight.detach().clone()
    layer(torch.randn(10, 64)).pow(2).sum().backward()
    Muon(muon_groups(layer, 0.0), lr=0.01, betas=(0.9, 0.98)).step()
    rms = (layer.weight - before).pow(2).mean().sqrt() / 0.01
    assert 0.05 < rms < 0.25


def test_a_restored_optimizer_goes_on_exactly() -> None:
    def make() -> tuple[nn.Module, Muon]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 3))
        return model, Muon(muon_groups(model, 0.01), lr=0.01, betas=(0.9, 0.98))

    def step(model: nn.Module, optimizer: Muon, seed: int) -> None:
        optimizer.zero_grad()
        model(torch.randn(4, 32, generator=torch.Generator().manual_seed(seed))).pow(2).sum().backward()
        optimizer.step()

    straight, first = make(), make()
    for seed in range(4):
        step(*straight, seed)
    for seed in range(2):
        step(*first, seed)
    second = make()
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(first[1].state_dict())
    for seed in range(2, 4):
        step(*second, seed)
    for a, b in zip(straight[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(a, b)
