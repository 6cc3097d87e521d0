"""The cost model, against hand numbers, a closed form, and torch's own count of what a dense encoder executes."""

from itertools import pairwise

import pytest
import torch
from helpers import dense_layer_flops, layer_flops, relative_flops
from torch.utils.flop_counter import FlopCounterMode


def macs(entering, surviving, hidden, width):
    """One layer, product by product."""
    projections = 4 * entering * hidden * hidden  # query, key, value, output
    attention = entering * entering * hidden + entering * entering * hidden  # query · key, probabilities · value
    feed_forward = surviving * hidden * width + surviving * width * hidden
    return projections + attention + feed_forward


def test_a_pruned_example_by_hand():
    # D = 2, I = 3. Layer 1: 4·4·5 + 2·2·25 + 2·2·3·3 = 80 + 100 + 36 MACs. Layer 2: 4·4·3 + 2·2·9 + 2·2·3·1.
    costs = layer_flops(torch.tensor([[5, 3, 1]]), hidden_size=2, intermediate_size=3)
    assert costs.dtype == torch.float64
    assert costs.tolist() == [[2 * (80 + 100 + 36), 2 * (48 + 36 + 12)]]
    # Dense: two layers of 80 + 100 + 2·2·3·5 = 240 MACs.
    assert relative_flops(torch.tensor([[5, 3, 1]]), 2, 3).tolist() == [(216 + 96) / 480]


def test_equals_the_sum_over_products_example_by_example():
    lengths = torch.randint(1, 129, (6, 13)).sort(dim=1, descending=True).values
    costs = layer_flops(lengths, 768, 3072)
    for example, row in enumerate(lengths.tolist()):
        expected = [2 * macs(n, m, 768, 3072) for n, m in pairwise(row)]
        assert costs[example].tolist() == expected


def test_bert_base_at_128_tokens_costs_22_gflops():
    costs = dense_layer_flops(torch.tensor([128]), 12, 768, 3072)
    assert costs.shape == (1, 12)
    assert costs.sum().item() == 12 * 2 * macs(128, 128, 768, 3072) == 22_347_251_712


def test_dense_is_nothing_pruned():
    lengths = torch.tensor([7, 128])
    unpruned = lengths[:, None].expand(2, 5)
    assert torch.equal(dense_layer_flops(lengths, 4, 32, 48), layer_flops(unpruned, 32, 48))
    assert relative_flops(unpruned, 32, 48).tolist() == [1, 1]


def test_relative_cost_lies_between_0_and_1_and_falls_with_every_token():
    lengths = torch.tensor([[20, 20, 20], [20, 20, 19], [20, 10, 10], [20, 1, 1]])
    shares = relative_flops(lengths, 32, 48).tolist()
    assert shares == sorted(shares, reverse=True)
    assert len(set(shares)) == 4
    assert shares[0] == 1
    assert shares[-1] > 0


@pytest.mark.parametrize("tokens", [1, 5, 31])
def test_equals_what_torch_counts_in_a_dense_encoder(make_dense, family, tokens):
    encoder = make_dense(family, attn_implementation="eager").base_model.encoder
    hidden = torch.randn(1, tokens, 32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(hidden)
    expected = dense_layer_flops(torch.tensor([tokens]), 6, 32, 48)
    assert counter.get_total_flops() == expected.sum().item()
