"""Memory by arithmetic: what is counted, and that tensors without data count as those with."""

import pytest
import torch

from benchmarks.speed.refine_memory import Live, Sizes, counted, fused_attention, make_guide, make_step, table

TINY = Sizes((8, 16), (8, 16), 8, 2, 4, 0)


def test_storages_count_as_long_as_they_live_and_views_of_known_ones_not_at_all():
    known = torch.ones(50, 50)
    with Live([known]) as live:
        first = known.t() + 1  # 10,000 bytes
        second = first * 2
        assert live.now == live.peak == 20_000
        del first
        third = second[:10].exp()
        assert live.now == 12_000
        del second, third
    assert (live.now, live.peak) == (0, 20_000)


def test_what_autograd_keeps_counts_until_the_backward_pass_is_done():
    leaf = torch.ones(1000, requires_grad=True)
    with Live([leaf]) as live:
        out = leaf.exp().exp().sum()
        assert live.now == 8004  # both exps are kept, and the sum
        out.backward()
        del out
        assert live.now == 4000  # the gradient


@pytest.mark.parametrize("own", [False, True])
def test_a_step_without_data_counts_as_one_with(own):
    said = counted(TINY, views=2, side=32, half=False, own=own)[1]
    with fused_attention():
        guide = make_guide(TINY, side=32, half=False)
        step = make_step(guide, views=2, side=32, own=own)
        known = [*guide.network.parameters(), *guide.vae.parameters()]
        with Live(known) as live:
            step()
    assert live.peak == pytest.approx(said, rel=0.03)


def test_the_table_names_every_part(monkeypatch):
    monkeypatch.setattr("benchmarks.speed.refine_memory.Sizes", lambda: TINY)
    monkeypatch.setattr("benchmarks.speed.refine_memory.field_bytes", lambda rays: 3 * 10**9)
    text = table(views=1, side=32, own=False, rays_at_once=100)  # of 1,024
    assert "UNet, weights" in text and "field, 100 rays" in text
    assert "4.5" in text.splitlines()[-1]  # the field's 3 GB, and CUDA's 1.5
