"""Attention against a slow reference, its masks, and its refusals."""

import copy
import math

import pytest
import torch

from shapeloom.nn.transformer import Attention, RMSNorm


def slow_attention(layer: Attention, x, source):
    """Softmax attention written out head by head, in loops over heads and samples."""
    width = x.shape[-1]
    size = width // layer.heads
    query, (key, value) = layer.query(x), layer.key_value(source).chunk(2, dim=-1)
    heads = []
    for h in range(layer.heads):
        part = slice(h * size, (h + 1) * size)
        q, k = layer.query_norm(query[..., part]), layer.key_norm(key[..., part])
        weights = torch.softmax(q @ k.mT / math.sqrt(size), dim=-1)
        heads.append(weights @ value[..., part])
    return layer.out(torch.cat(heads, dim=-1))


@pytest.mark.parametrize("qk_norm", [True, False])
def test_self_attention_against_a_loop_over_heads(qk_norm):
    torch.manual_seed(0)
    layer = Attention(12, 3, qk_norm=qk_norm).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    torch.testing.assert_close(layer(x), slow_attention(layer, x, x))


def test_cross_attention_against_a_loop_over_heads():
    torch.manual_seed(0)
    layer = Attention(12, 2, context_width=7).double()
    x, context = torch.randn(2, 5, 12, dtype=torch.float64), torch.randn(2, 3, 7, dtype=torch.float64)
    torch.testing.assert_close(layer(x, context), slow_attention(layer, x, context))


def test_bfloat16_on_a_cpu_is_attended_in_float32():
    """The answer and its gradients are those of the same rounded numbers, rounded once more at the end."""
    torch.manual_seed(0)
    layer = Attention(16, 2, qk_norm=False).bfloat16()
    x = torch.randn(2, 5, 16).bfloat16().requires_grad_()
    layer(x).sum().backward()
    exact, wanted = copy.deepcopy(layer).double(), x.detach().double().requires_grad_()
    slow_attention(exact, wanted, wanted).sum().backward()
    assert layer(x).dtype == torch.bfloat16 and x.grad is not None and wanted.grad is not None
    torch.testing.assert_close(layer(x).double(), slow_attention(exact, wanted, wanted), rtol=0.02, atol=0.02)
    torch.testing.assert_close(x.grad.double(), wanted.grad, rtol=0.05, atol=0.05)


def test_masked_context_is_as_good_as_absent():
    torch.manual_seed(0)
    layer = Attention(8, 2, context_width=8)
    x, context = torch.randn(2, 4, 8), torch.randn(2, 6, 8)
    mask = torch.arange(6).expand(2, 6) < 3
    torch.testing.assert_close(layer(x, context, mask), layer(x, context[:, :3]))


def test_a_sample_with_nothing_to_attend_to_gathers_zeros_with_finite_gradients():
    layer = Attention(8, 2, context_width=8)
    x, context = torch.randn(1, 4, 8), torch.randn(1, 6, 8, requires_grad=True)
    result = layer(x, context, torch.zeros(1, 6, dtype=torch.bool))
    torch.testing.assert_close(result, layer.out.bias.expand_as(result))
    result.sum().backward()
    assert context.grad is not None and torch.isfinite(context.grad).all()


def test_attention_is_equivariant_to_the_order_of_its_tokens():
    torch.manual_seed(0)
    layer = Attention(8, 2)
    x, order = torch.randn(1, 6, 8), torch.randperm(6)
    torch.testing.assert_close(layer(x)[:, order], layer(x[:, order]))


def test_rms_norm_gives_unit_root_mean_square_at_any_scale():
    x = torch.randn(5, 16) * torch.logspace(-1, 4, 5)[:, None]
    # 1e-3: the epsilon of 1e-6 inside the root shrinks inputs of size 0.1 by 5e-5.
    torch.testing.assert_close(RMSNorm(16)(x).square().mean(-1), torch.ones(5), atol=1e-3, rtol=0)


def test_wrong_use_is_refused_in_words():
    with pytest.raises(ValueError, match="multiple of heads"):
        Attention(10, 3)
    with pytest.raises(ValueError, match="needs a context"):
        Attention(8, 2, context_width=4)(torch.randn(1, 2, 8))
    with pytest.raises(ValueError, match="takes no context"):
        Attention(8, 2)(torch.randn(1, 2, 8), torch.randn(1, 2, 8))
