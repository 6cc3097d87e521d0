"""Triton's kernels against the formulas: on a CPU in Triton's interpreter, and on a GPU."""

import pytest
import torch
from torch.nn import functional

pytest.importorskip("triton")

from ltp.benchmark.models import random_classifier
from ltp.deploy.cuda import DeployedOnCUDA
from ltp.execution.attention import attention_by_kernel, attention_by_rows
from ltp.execution.packing import Packing
from ltp.kernels.attention import attention
from ltp.kernels.rows import compact, layer_norm, linear
from ltp.model.classifier import LTPForSequenceClassification
from ltp.pruning import all_methods

ON_GPU = torch.cuda.is_available()  # else tests/conftest.py has chosen the interpreter
DEVICE = "cuda" if ON_GPU else "cpu"
pytestmark = [pytest.mark.gpu] if ON_GPU else []


def packing_of(*counts):
    return Packing(torch.tensor(sorted(counts), device=DEVICE), torch.arange(len(counts), device=DEVICE))


def rows_of(packing, size, heads=2):
    torch.manual_seed(0)
    shape = (packing.total, heads, size)
    return [torch.randn(shape, device=DEVICE, requires_grad=True) for _ in range(3)]


def by_formula(query, key, value, counts, bias, weights):
    """Context, log-sum-exp and attention received in each head, one sequence after the other, in float64."""
    contexts, lses, received = [], [], []
    parts = (x.double().split(counts) for x in (query, key, value, bias, weights))
    for q, k, v, b, w in zip(*parts, strict=True):
        logits = torch.einsum("ihd,jhd->hij", q, k) / q.shape[-1] ** 0.5 + b
        probs = logits.softmax(dim=-1)
        contexts.append(torch.einsum("hij,jhd->ihd", probs, v))
        lses.append(logits.logsumexp(dim=-1).T)
        received.append(torch.einsum("i,hij->hj", w, probs))
    return torch.cat(contexts), torch.cat(lses), torch.cat(received, dim=1)


@pytest.mark.parametrize(
    ("size", "counts"),
    [
        (32, [1, 2, 17]),
        (24, [5, 40]),
        (64, [1, 64, 65]),
        (128, [3, 33]),
        pytest.param(64, [512], marks=pytest.mark.slow),
    ],
)
def test_attention_and_its_gradients_equal_the_formula(size, counts):
    packing = packing_of(*counts)
    tensors = rows_of(packing, size)
    tensors += [torch.rand(packing.total, device=DEVICE, requires_grad=True) for _ in range(2)]  # bias, weights
    *qkv, bias, weights = tensors
    width = max(counts) + 3
    context, lse, padded = attention(*qkv, packing.starts, packing.counts, width, bias=bias, query_weights=weights)
    received = torch.cat([row[:, :count] for row, count in zip(padded, packing.lengths, strict=True)], dim=1)
    results = (context, lse, received)
    expected = by_formula(*qkv, packing.lengths, bias, weights)
    for result, reference in zip(results, expected, strict=True):
        assert (result - reference).abs().max() < 1e-5
    assert all((row[:, count:] == 0).all() for row, count in zip(padded, packing.lengths, strict=True))
    factors = [torch.randn_like(result) for result in results]
    gradients = [
        torch.autograd.grad(sum((x * f).sum() for x, f in zip(outputs, factors, strict=True)), tensors)
        for outputs in (results, expected)
    ]
    for result, reference in zip(*gradients, strict=True):
        assert (result - reference).norm() / reference.norm() < 1e-5


def test_dropout_drops_the_same_weights_in_both_passes():
    packing = packing_of(16)
    query, key, _ = rows_of(packing, 16)
    where = (packing.starts, packing.counts, 16)
    settings = {"dropout": 0.25, "seed": 7, "received": False}
    identity = torch.eye(16, device=DEVICE)[:, None].expand(16, 2, 16).contiguous().requires_grad_()
    dropped = attention(query, key, identity, *where, **settings)[0].transpose(0, 1)  # (H, query, key)
    probs = torch.einsum("ihd,jhd->hij", query, key).div(4).softmax(dim=-1)
    mask = (dropped != 0).detach()
    assert 0.65 < float(mask.float().mean()) < 0.85  # of 512; the standard deviation is 0.02
    other = attention(query, key, identity, *where, **settings | {"seed": 8})[0].transpose(0, 1)
    assert 0.2 < float((mask != (other != 0)).float().mean()) < 0.55  # independent masks differ in 2 · 0.25 · 0.75
    torch.testing.assert_close(dropped, probs * mask / 0.75, atol=1e-5, rtol=1e-4)
    factor = torch.randn(16, 2, 16, device=DEVICE)
    value = torch.randn(16, 2, 16, device=DEVICE, requires_grad=True)
    context = attention(query, key, value, *where, **settings)[0]
    expected = torch.einsum("hij,jhd->ihd", probs * mask / 0.75, value)
    tensors = (query, key, value)
    for result, reference in zip(
        torch.autograd.grad((context * factor).sum(), tensors),
        torch.autograd.grad((expected * factor).sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(result, reference, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
def test_everything_that_a_method_reads_equals_the_padded_form(weighted):
    packing = packing_of(1, 3, 20)
    qkv = rows_of(packing, 16)
    weights = torch.rand(packing.total, device=DEVICE) + 0.1 if weighted else None
    reads = frozenset({"received", "diagonal", "class_attention", "value_weighted"})
    forms = [
        attend(*qkv, packing, 0.0, reads=reads, key_weights=weights, query_weights=weights)
        for attend in (attention_by_kernel, attention_by_rows)
    ]
    torch.testing.assert_close(forms[0][0], forms[1][0], atol=1e-5, rtol=0)
    assert set(forms[0][1]) == reads
    for name in reads:
        torch.testing.assert_close(forms[0][1][name], forms[1][1][name], atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # 1 / (1 + inf) is 0
@pytest.mark.parametrize("count", [1, 40, 100])
@pytest.mark.parametrize("activation", ["", "gelu", "gelu_tanh", "relu"])
def test_a_product_of_the_rows_in_use(count, activation):
    torch.manual_seed(0)
    rows, weight = torch.randn(128, 40, device=DEVICE), torch.randn(50, 40, device=DEVICE)
    bias, residual = torch.randn(50, device=DEVICE), torch.randn(128, 50, device=DEVICE)
    index = torch.randperm(128, device=DEVICE)
    total = torch.tensor([count], device=DEVICE)
    apply = {
        "": lambda x: x,
        "gelu": functional.gelu,
        "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
        "relu": functional.relu,
    }[activation]
    result = linear(rows, weight, bias, total, index=index, residual=residual, activation=activation)
    expected = apply(functional.linear(rows, weight, bias))[index] + residual[index]
    torch.testing.assert_close(result[:count], expected[:count], atol=2e-4, rtol=1e-5)


def test_a_norm_of_the_rows_in_use():
    rows, weight, bias = (torch.randn(*shape, device=DEVICE) for shape in ((9, 40), (40,), (40,)))
    result = layer_norm(rows, weight, bias, 1e-5, torch.tensor([7], device=DEVICE))
    torch.testing.assert_close(result[:7], functional.layer_norm(rows[:7], (40,), weight, bias), atol=1e-5, rtol=0)


def test_survivors_move_together():
    survivors = torch.tensor([[1, 0, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool, device=DEVICE)
    starts, counts = torch.tensor([0, 3, 5], device=DEVICE), torch.tensor([3, 2, 4], device=DEVICE)
    new_starts, new_counts, kept, alive, total = compact(survivors, starts, counts, 9)
    assert new_starts.tolist() == [0, 2, 3]
    assert new_counts.tolist() == [2, 1, 4]
    assert kept.tolist() == [0, 2, 3, 5, 6, 7, 8, 0, 0]
    assert alive.sum(dim=1).tolist() == [2, 1, 4]
    assert total.tolist() == [7]


@pytest.fixture(scope="module")
def dense():
    return random_classifier("tiny").to(DEVICE)


@pytest.mark.parametrize("method", all_methods())
def test_deployed_on_a_gpu_equals_the_masked_form(dense, method):
    model = LTPForSequenceClassification.from_dense(dense, prune_mode=method).eval()
    torch.manual_seed(0)
    ids = torch.randint(5, 100, (3, 13), device=DEVICE)
    mask = torch.arange(13, device=DEVICE) < torch.tensor([13, 1, 8], device=DEVICE)[:, None]
    model.execution = "masked"
    with torch.no_grad():
        expected = model(ids, attention_mask=mask.long())
    deployed = DeployedOnCUDA(model.family, model.dense, model.pruner, dtype="float32")
    for _ in range(2):  # on a GPU the first call captures the graph
        result = deployed(ids, attention_mask=mask.long())
        assert (result.logits - expected.logits).abs().max() < 1e-5
        assert torch.equal(result.token_lengths, expected.token_lengths)
    assert deployed._is_capturable == ON_GPU


def test_mistakes_are_named(dense):
    model = LTPForSequenceClassification.from_dense(dense).eval()
    with pytest.raises(ValueError, match="on a GPU deploy offers float32, bfloat16, float16"):
        DeployedOnCUDA(model.family, model.dense, model.pruner, dtype="int8")
    deployed = DeployedOnCUDA(model.family, model.dense, model.pruner, dtype="float32")
    with pytest.raises(ValueError, match="position 0"):
        deployed(torch.ones(1, 3, dtype=torch.int64), attention_mask=torch.tensor([[0, 1, 1]]))


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
def test_a_call_never_waits_for_the_device(dense):
    model = LTPForSequenceClassification.from_dense(dense, prune_mode="absolute_threshold").eval()
    deployed = model.deploy("bfloat16")
    ids = torch.randint(5, 100, (4, 30), device="cuda")
    mask = torch.ones_like(ids)
    deployed(ids, attention_mask=mask)
    torch.cuda.set_sync_debug_mode("error")
    try:
        deployed(ids, attention_mask=mask)
    finally:
        torch.cuda.set_sync_debug_mode("default")
