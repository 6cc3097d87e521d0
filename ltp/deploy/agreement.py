"""Comparison of a form of a model, such as a graph, with the model."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ltp.data.sequences import Batch
from ltp.deploy.formats import MOST_ERROR
from ltp.deploy.onnx import Infer
from ltp.errors import RunError

#: Maximum difference of logits in float32.
ALLOWED = 1e-4
#: Share of sequences that may differ in float32: rounding may move a score to the other side of its threshold.
TOLERATED_SHARE = 0.01
#: bfloat16 and int8: largest share by which tokens alive may differ.
MOST_TOKENS = 0.1
#: Share of the model's answers below which there is a warning.
FEW_ANSWERS = 0.95


class DisagreementError(RunError):
    """The results of a form differ from those of the model."""


@dataclass(frozen=True)
class Agreement:
    """Result of comparing a form with its model.

    Attributes:
        sequences: number of sequences compared.
        difference: largest difference of logits; in float32 among the sequences that agree.
        tolerated: in float32 the number of sequences that do not agree, at most :data:`TOLERATED_SHARE` of them.
        answers: share of answers (a text's labels, a word's label, the ends of a span) that are the model's; None if
            the results are numbers.
        error: root mean square of the differences of logits, divided by that of the model's logits.
        tokens: sum of the differences of tokens alive in all layers, divided by the model's sum.
        dtype: type of the graph.
    """

    sequences: int
    difference: float
    tolerated: int
    answers: float | None
    error: float
    tokens: float
    dtype: str = "float32"

    def __str__(self) -> str:
        """Describe it in one line."""
        if self.dtype == "float32":
            tolerated = f"; {self.tolerated} sequences pruned differently by rounding" if self.tolerated else ""
            return f"logits differ from the model's by {self.difference:.1g}{tolerated}"
        answers = "" if self.answers is None else f"{self.answers:.1%} of the answers are the model's; "
        logits = f"logits by {self.error:.1%}, at most {self.difference:.2g}"
        return f"{answers}tokens alive differ by {self.tokens:.1%}, {logits}"

    @property
    def has_few_answers(self) -> bool:
        """Whether the share of answers calls for a warning."""
        return self.answers is not None and self.answers < FEW_ANSWERS


def compare_results(model: Any, graph: Infer, batches: Iterable[Batch], *, dtype: str = "float32") -> Agreement:
    """Run a model and another form of it on the same batches and compare the results.

    Args:
        model: the model, float32.
        graph: the form; computes the results of the head, and token lengths.
        batches: their inputs.
        dtype: its type, ``float32``, ``bfloat16`` or ``int8``, from which follows what is allowed.

    Raises:
        DisagreementError: they differ by more.
    """
    differences, same_lengths, same_answers = [], [], []
    token_difference = tokens = 0
    squared_difference = squares = 0.0
    for batch in batches:
        with torch.inference_mode():
            output = model(**batch)
        *results, lengths = graph(batch)
        expected = [output[name] for name in model.output_class.results]
        pairs = list(zip(results, expected, strict=True))
        differences.append(torch.stack([(a - b).abs().flatten(1).amax(dim=1) for a, b in pairs]).amax(dim=0))
        same_lengths.append((lengths == output.token_lengths).all(dim=1))
        same_answers += [
            _same_answers(model, a, b, batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool())
            for a, b in pairs
        ]
        squared_difference += sum(float((a - b).square().sum()) for a, b in pairs)
        squares += sum(float(b.square().sum()) for b in expected)
        token_difference += int((lengths - output.token_lengths).abs().sum())
        tokens += int(output.token_lengths.sum())
    difference, answers = torch.cat(differences), torch.cat(same_answers).float()
    share = float(answers.mean()) if len(answers) else None
    shares = {"answers": share, "error": (squared_difference / squares) ** 0.5, "tokens": token_difference / tokens}
    if dtype == "float32":
        agree = torch.cat(same_lengths) & (difference <= ALLOWED)  # False for NaN
        wrong = int((~agree).sum())
        if wrong > TOLERATED_SHARE * len(agree):
            raise DisagreementError(
                f"the float32 form is wrong for {wrong} of {len(agree)} sequences: logits differ from the model's by "
                f"up to {float(difference.max()):.2g} (allowed: {ALLOWED:g}). Please report this."
            )
        return Agreement(len(agree), float(difference[agree].max()), wrong, **shares)
    agreement = Agreement(len(difference), float(difference.max()), 0, **shares, dtype=dtype)
    if not (agreement.error <= MOST_ERROR and agreement.tokens <= MOST_TOKENS):  # NaN is wrong
        raise DisagreementError(
            f"the {dtype} form computes something else than the model: {agreement}. Allowed: tokens by "
            f"{MOST_TOKENS:.0%}, logits by {MOST_ERROR:.0%} (root mean square). float32 is exact."
        )
    return agreement


def _same_answers(model: Any, results: Tensor, expected: Tensor, real: Tensor) -> Tensor:
    """Whether answers are the same, bool of any number; empty if the results are numbers.

    Args:
        model: gives the kind of the results.
        results, expected: logits, (B, labels), (B, N, labels) or (B, N).
        real: real tokens, (B, N) bool.
    """
    if model.config.problem_type == "multi_label_classification":
        return ((results > 0) == (expected > 0)).flatten()
    if model.config.problem_type == "regression" or results.shape[-1] == 1:
        return torch.empty(0, dtype=torch.bool)
    same = results.argmax(dim=-1) == expected.argmax(dim=-1)
    return same[real] if same.shape == real.shape else same
