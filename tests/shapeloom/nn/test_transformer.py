"""The transformer block: identity at initialisation, its conditioning paths, independence within a batch."""

import itertools
import warnings

import pytest
import torch

from shapeloom.nn.transformer import Mlp, TransformerBlock


def test_an_adaptive_block_starts_as_the_identity():
    torch.manual_seed(0)
    block = TransformerBlock(16, 4, cross_width=6, adaptive_width=10)
    x = torch.randn(3, 5, 16)
    assert torch.equal(block(x, torch.randn(3, 2, 6), None, torch.randn(3, 10)), x)


@pytest.mark.parametrize(
    ("cross", "adaptive", "activation"), list(itertools.product((None, 6), (None, 10), ("gelu", "swiglu")))
)
def test_every_input_reaches_the_output_and_every_parameter_gets_a_gradient(cross, adaptive, activation):
    torch.manual_seed(0)
    block = TransformerBlock(16, 4, cross, adaptive, activation=activation)
    for parameter in block.parameters():  # leave the zero initialisation, whose gradients are partly zero
        torch.nn.init.normal_(parameter, std=0.2)
    x = torch.randn(3, 5, 16, requires_grad=True)
    context = None if cross is None else torch.randn(3, 2, cross, requires_grad=True)
    modulation = None if adaptive is None else torch.randn(3, adaptive, requires_grad=True)
    block(x, context, None, modulation).square().sum().backward()
    for tensor in (x, context, modulation, *block.parameters()):
        if tensor is not None:
            assert tensor.grad is not None and tensor.grad.abs().sum() > 0


def test_a_sample_does_not_depend_on_its_batch_mates():
    torch.manual_seed(0)
    block = TransformerBlock(16, 4, 6, 10).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x, context, modulation = (torch.randn(*s, dtype=torch.float64) for s in ((4, 5, 16), (4, 3, 6), (4, 10)))
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    alone = block(x[1:2], context[1:2], mask[1:2], modulation[1:2])
    torch.testing.assert_close(block(x, context, mask, modulation)[1:2], alone)


def test_the_block_runs_under_bf16_autocast_without_a_warning():
    block = TransformerBlock(16, 4, 6, 10)
    with warnings.catch_warnings(), torch.autocast("cpu", dtype=torch.bfloat16):
        warnings.simplefilter("error")
        result = block(torch.randn(2, 5, 16), torch.randn(2, 3, 6), None, torch.randn(2, 10))
    assert torch.isfinite(result).all()


def test_gelu_and_swiglu_have_about_the_same_size():
    sizes = [sum(p.numel() for p in Mlp(96, activation=a).parameters()) for a in ("gelu", "swiglu")]
    assert abs(sizes[0] / sizes[1] - 1) < 0.02


def test_missing_or_unexpected_conditions_are_refused_in_words():
    x = torch.randn(1, 2, 16)
    with pytest.raises(ValueError, match="expects a context and no modulation"):
        TransformerBlock(16, 4, cross_width=6)(x)
    with pytest.raises(ValueError, match="expects no context and a modulation"):
        TransformerBlock(16, 4, adaptive_width=6)(x)
    with pytest.raises(ValueError, match="called with no context and a modulation"):
        TransformerBlock(16, 4)(x, None, None, torch.randn(1, 6))
