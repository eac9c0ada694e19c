"""Low-rank adaptation: starts as the network itself, trains few numbers, and merges to plain weights."""

import torch
from torch import nn

from prior.lora import add_lora, merge_lora


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.SiLU(), nn.Linear(20, 6))


def test_it_starts_as_the_network_and_trains_only_the_low_matrices():
    plain, adapted, x = network(), network(), torch.randn(5, 12)
    adapted.requires_grad_(False)
    add_lora(adapted, 2)
    torch.testing.assert_close(adapted(x), plain(x))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained == 2 * (12 + 20) + 2 * (20 + 6)


def test_merged_weights_answer_as_the_adapted_network():
    plain, adapted, x = network(), network(), torch.randn(5, 12)
    add_lora(adapted, 3)
    for parameter in adapted.parameters():
        nn.init.normal_(parameter)
    merged = merge_lora(adapted.state_dict())
    assert merged.keys() == plain.state_dict().keys()
    plain.load_state_dict(merged)
    torch.testing.assert_close(plain(x), adapted(x))
    assert merge_lora(merged).keys() == merged.keys()  # plain weights stay as they are
