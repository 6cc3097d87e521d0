"""What a sweeper that optimises is told."""

import itertools

import pytest

from ltp.sweeps.objective import objective


def results(metric, relative_flops):
    return {"metric": {"name": "accuracy", "value": metric}, "relative_flops": relative_flops}


def test_without_a_budget_it_is_the_metric():
    assert objective(results(0.9, 1.0), None) == 0.9


@pytest.mark.parametrize("relative_flops", [0.1, 0.3])
def test_within_the_budget_it_is_the_metric(relative_flops):
    assert objective(results(0.9, relative_flops), 0.3) == 0.9
    assert objective(results(-0.2, relative_flops), 0.3) == -0.2


def test_a_run_over_the_budget_ranks_below_every_run_within():
    assert objective(results(1.0, 0.3000001), 0.3) < objective(results(-1.0, 0.3), 0.3)


def test_the_further_over_the_budget_the_worse_whatever_the_metric():
    runs = [(0.1, 0.301), (0.5, 0.35), (0.2, 0.5), (0.9, 0.8), (1.0, 1.0)]
    values = [objective(results(metric, cost), 0.3) for metric, cost in runs]
    assert all(nearer > further for nearer, further in itertools.pairwise(values))
    assert min(values) == pytest.approx(-1.7)


def test_a_metric_that_is_no_number_is_the_worst_within():
    assert objective(results(None, 0.2), 0.3) == -1.0
    assert objective(results(None, 0.2), None) == -1.0
