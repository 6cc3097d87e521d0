"""The LightningModule: what a training step and an evaluation are, for every stage and method."""

import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import get_linear_schedule_with_warmup

from ltp.calibration.search import AboveDenseError, UnreachableError, calibrate, measured_flops
from ltp.data.datamodule import GLUEDataModule
from ltp.data.tasks import Task, build_metrics
from ltp.errors import RunError
from ltp.evaluation.cost import CostMetric
from ltp.model.classifier import LTPForSequenceClassification
from ltp.pruning.threshold import ThresholdPruner
from ltp.training.budget import BudgetMultiplier, sampled_budget
from ltp.training.distillation import Distillation

log = logging.getLogger(__name__)

#: Training rows that budgets are calibrated on between two steps.
CALIBRATION_ROWS = 512
#: And before an evaluation. The cost of 512 rows has a standard error of about 0.01, which would be the evaluation's.
EVALUATION_ROWS = 2048
#: Optimiser steps after which a soft training measures what its budget costs in an evaluation.
MEASURE_EVERY = 20
#: Optimiser steps after which a budget is calibrated again while weights change under fixed thresholds.
RECALIBRATE_EVERY = 50


@dataclass
class BudgetEvaluation:
    """What the last evaluation found, for one budget.

    Attributes:
        budget: relative FLOPs; None without budgets.
        scores: metrics by name.
        cost: as :meth:`~ltp.evaluation.cost.CostMetric.compute` gives it.
        thresholds: the effective ones, or None.
    """

    budget: float | None
    scores: dict[str, float] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    thresholds: list[float] | None = None

    def logged(self) -> dict[str, float]:
        """The numbers that loggers get."""
        tokens = self.cost["tokens_per_layer"]
        values = {**self.scores, "relative_flops": self.cost["relative_flops"], "gflops": self.cost["gflops"]}
        for layer, kept in enumerate(tokens[1:], start=1):
            values[f"kept_fraction/layer_{layer:02d}"] = kept / tokens[0]
        for layer, threshold in enumerate(self.thresholds or (), start=1):
            values[f"threshold/layer_{layer:02d}"] = threshold
        return values


class LTPModule(pl.LightningModule):
    """Trains and evaluates a pruned classifier.

    Args:
        model: the classifier; its configuration says by which rule it trains.
        task: the task's row, labels known.
        lr: peak learning rate of the weights.
        lr_threshold: peak learning rate of the thresholds; None keeps them fixed.
        weight_decay: of weight matrices (biases, normalisation and thresholds have none).
        warmup_ratio: share of the steps in which the learning rate rises; it then falls linearly to 0.
        total_steps: optimiser steps of the training.
        seed: of dropout, together with step and rank.
        validation_splits: names of the splits in the order of the dataloaders; the first is the main one.
        budgets: relative FLOPs that the model is trained for, ascending; evaluations see them all. A soft training
            trains the lowest, at which a multiplier holds it. In others each optimiser step trains one of them, and
            calibration holds them.
        dense_flops: mean dense FLOPs of a training example; a soft training with budgets needs it.
        distillation: a teacher to learn from.
        fused: whether the optimiser updates all of a weight in one pass over memory: a sixth off a training step of a
            6-layer MiniLM on a CPU. In mixed precision Lightning refuses to clip gradients for such a one.
    """

    def __init__(
        self,
        model: LTPForSequenceClassification,
        task: Task,
        *,
        lr: float = 2e-5,
        lr_threshold: float | None = None,
        weight_decay: float = 0.0,
        warmup_ratio: float = 0.0,
        total_steps: int = 1,
        seed: int = 0,
        validation_splits: Sequence[str] = ("validation",),
        budgets: Sequence[float] = (),
        dense_flops: float | None = None,
        distillation: Distillation | None = None,
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.lr, self.lr_threshold, self.weight_decay = lr, lr_threshold, weight_decay
        self.warmup_steps, self.total_steps = math.ceil(warmup_ratio * total_steps), total_steps
        self.seed, self.fused = seed, fused
        self.validation_splits = tuple(validation_splits)
        config = model.config
        sizes = {"hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size}
        self.budgets = tuple(budgets)
        self.multiplier: BudgetMultiplier | None = None
        if budgets and config.masking_mode != "hard":
            assert dense_flops is not None
            self.multiplier = BudgetMultiplier(budgets[0], dense_flops=dense_flops, **sizes)
        self.distillation = distillation
        self.evaluated = [BudgetEvaluation(budget) for budget in self.budgets or (None,)]
        self.scores: Any = nn.ModuleList(
            nn.ModuleList(build_metrics(task) for _ in self.validation_splits) for _ in self.evaluated
        )
        self.costs: Any = nn.ModuleList(CostMetric(config.num_hidden_layers, **sizes) for _ in self.evaluated)
        if model.thresholds is not None:
            # ddp refuses parameters without a gradient, so fixed thresholds must say that they take none
            model.thresholds.requires_grad_(lr_threshold is not None)

    # ----------------------------------------------------------------------------------------------- training

    def on_fit_start(self) -> None:
        """Leave the evaluation mode that ``from_pretrained`` returns, else dropout would stay off."""
        self.model.train()
        if self.distillation is not None:
            self.distillation.teacher.to(self.device)  # type: ignore[arg-type]  # transformers wraps it

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make dropout a function of (seed, step, rank), so that a resumed run draws the same masks."""
        self._sync_logger_step()
        part = batch_idx % self.trainer.accumulate_grad_batches
        if self.budgets and part == 0:
            self._apply_budget(self.global_step)
        state = np.random.SeedSequence((self.seed, self.global_step, part, self.global_rank)).generate_state(1)
        torch.manual_seed(int(state[0]))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The objective of one micro-batch, weighted so that the optimiser step's is the mean over its examples."""
        distillation = self.distillation
        output = self.model(**batch, output_class_states=distillation is not None and distillation.needs_states)
        loss = output.loss
        if distillation is not None:
            task_loss = self.model.task_loss(output.logits, batch["labels"])
            loss = loss + distillation.added_loss(output, batch, task_loss)
        if self.multiplier is not None:
            loss = loss + self.multiplier.penalty(output.expected_lengths)
        self._check_finite(loss)
        rows = len(batch["labels"])
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=rows)
        if output.gate_sums is not None:
            kept = output.gate_sums.detach().mean(dim=0) / output.token_lengths[:, 0].double().mean()
            self.log("train/kept_fraction", kept.mean().float(), prog_bar=True, batch_size=rows)
        datamodule: GLUEDataModule = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
        return loss * datamodule.loss_weight(batch_idx, rows)

    def _check_finite(self, loss: Tensor) -> None:
        bad = (~torch.isfinite(loss.detach())).float()
        if self.trainer.world_size > 1:  # all ranks must stop, or the others wait for the one that did
            bad = self.trainer.strategy.reduce(bad, reduce_op="sum")
        if bad.item():
            raise RunError(
                f"the loss is {loss.item()} at step {self.global_step}: training stopped before this step's update, "
                "and the last checkpoint holds finite weights. Lower lr, or prune.lambda_threshold, or use "
                "trainer.precision=32-true."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Count back to the last optimiser step: neither a batch begun nor gradients accumulated since are saved."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        begun = progress["current"]["processed"] % self.trainer.accumulate_grad_batches
        if begun or progress["current"]["ready"] > progress["current"]["processed"]:
            for counts in (progress["total"], progress["current"]):
                done = counts["processed"] - begun
                counts.update(ready=done, started=done, processed=done, completed=done)
            progress["is_last_batch"] = False

    def _sync_logger_step(self) -> None:
        """Number the loggers' lines by optimiser steps: after a resume Lightning only guesses."""
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.global_step

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and linear decay; thresholds in a group of their own."""
        optimizer = AdamW(self._parameter_groups(), lr=self.lr, fused=self.fused)
        schedule = get_linear_schedule_with_warmup(optimizer, self.warmup_steps, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _parameter_groups(self) -> list[dict[str, Any]]:
        trained = [(name, one) for name, one in self.model.named_parameters() if one.requires_grad]
        thresholds = [one for name, one in trained if name.startswith("pruner.")]
        weights = [one for name, one in trained if not name.startswith("pruner.")]
        groups = [
            {"params": [one for one in weights if one.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [one for one in weights if one.ndim < 2], "weight_decay": 0.0},
        ]
        if thresholds:
            groups.append({"params": thresholds, "weight_decay": 0.0, "lr": self.lr_threshold})
        return groups

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients' norm; with budgets that of the thresholds apart.

        It is 10 to 200 times as large as the weights' there, which would hardly learn.
        """
        if self.multiplier is None or not gradient_clip_val:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        *weights, thresholds = (group["params"] for group in optimizer.param_groups)
        nn.utils.clip_grad_norm_([one for group in weights for one in group], gradient_clip_val)
        nn.utils.clip_grad_norm_(thresholds, gradient_clip_val)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the learning rate that the step uses, and adapt the multiplier to the step's cost."""
        self.log("train/lr", optimizer.param_groups[0]["lr"])
        if self.multiplier is not None:
            assert self.model.thresholds is not None
            expected = self.multiplier.update(self.model.thresholds, self._total)
            self.log("train/lambda", self.multiplier.value.float())
            self.log("train/expected_flops", expected, prog_bar=True)

    # ---------------------------------------------------------------------------------------------- the budget

    def _apply_budget(self, step: int) -> None:
        """Choose the budget that an optimiser step trains, and bring its cost there from time to time."""
        if self.multiplier is not None:
            if step == 0:
                self.calibrate(numbers=[0])
            self._use_budget(0)
            if step and step % MEASURE_EVERY == 0:
                self.multiplier.measured(self._sample_cost())
            return
        if step == 0:
            self.calibrate()
        self._use_budget(sampled_budget(self.budgets, self.seed, step))
        if self.model.thresholds is not None and step and step % RECALIBRATE_EVERY == 0:
            self.calibrate(numbers=[self._budget_in_use])

    def _calibrate_for_evaluation(self) -> None:
        """Bring budgets to their cost before an evaluation."""
        if self.multiplier is None:
            self.calibrate(rows=EVALUATION_ROWS)
            return
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            self.calibrate(numbers=[0], rows=EVALUATION_ROWS)  # on its way the trained one is only watched
        self._use_budget(0)
        assert isinstance(self.model.pruner, ThresholdPruner)
        self.model.pruner.share_thresholds()
        self.calibrate(numbers=range(1, len(self.budgets)), rows=EVALUATION_ROWS)

    def calibrate(self, numbers: Sequence[int] | None = None, rows: int = CALIBRATION_ROWS) -> None:
        """Turn the thresholds of budgets to their cost on the calibration sample.

        Every process measures its share of the sample, and all find the same.

        Args:
            numbers: which budgets; all by default.
            rows: of the sample.

        Raises:
            RunError: a budget cannot be reached.
        """
        in_use = self._budget_in_use
        for number in range(len(self.budgets)) if numbers is None else numbers:
            self._use_budget(number)
            budget = self.budgets[number]
            try:
                calibrate(self.model, lambda: self._sample_cost(rows), budget)
            except (UnreachableError, AboveDenseError) as error:
                raise RunError(
                    f"the budget {budget:g} cannot be held: {error} (relative FLOPs of {rows} training "
                    "examples, or all). Ask for another with prune.target_flops or budgets."
                ) from error
        self._use_budget(in_use)

    def _sample_cost(self, rows: int = CALIBRATION_ROWS) -> float:
        """Relative FLOPs of a calibration sample, as an evaluation counts them."""
        datamodule: GLUEDataModule = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
        batches = datamodule.calibration_batches(rows)
        with self.trainer.precision_plugin.forward_context():
            flops, dense = self._total(measured_flops(self.model, batches)).tolist()
        return flops / dense

    @property
    def _budget_in_use(self) -> int:
        budget = self.model.budget
        return 0 if budget is None else self.budgets.index(budget)

    def _use_budget(self, number: int) -> None:
        if self.model.config.budgets:
            self.model.use_budget(self.budgets[number])

    def _total(self, value: Tensor) -> Tensor:
        """A tensor's sum over all processes."""
        if self.trainer.world_size == 1:
            return value
        return self.trainer.strategy.reduce(value.to(self.device), reduce_op="sum").cpu()

    # --------------------------------------------------------------------------------------------- evaluation

    def on_validation_start(self) -> None:
        """Number the evaluation after the training, which may have been over when this process began."""
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            self._sync_logger_step()
        if self.budgets:
            self._calibrate_for_evaluation()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the metrics of each budget, under the hard rule."""
        in_use = self._budget_in_use
        for number, (scores, cost) in enumerate(zip(self.scores, self.costs, strict=True)):
            self._use_budget(number)
            output = self.model(**batch)
            logits = output.logits.float()
            predictions = logits.squeeze(-1) if self.task.is_regression else logits.argmax(dim=-1)
            scores[dataloader_idx].update(predictions, batch["labels"])
            if dataloader_idx == 0:
                cost.update(output.token_lengths)
        self._use_budget(in_use)

    def on_validation_epoch_end(self) -> None:
        """Compute the metrics once over the whole split and log them: means over the budgets, and each one's."""
        in_use = self._budget_in_use
        for number, evaluated in enumerate(self.evaluated):
            self._use_budget(number)
            thresholds = self.model.thresholds
            evaluated.thresholds = None if thresholds is None else thresholds.tolist()
            evaluated.scores = {}
            for place, (split, scores) in enumerate(zip(self.validation_splits, self.scores[number], strict=True)):
                suffix = "_" + split.removeprefix("validation_") if place else ""
                evaluated.scores |= {f"{name}{suffix}": value.item() for name, value in scores.compute().items()}
                scores.reset()
            evaluated.cost = self.costs[number].compute()
            self.costs[number].reset()
        self._use_budget(in_use)
        every = [evaluated.logged() for evaluated in self.evaluated]
        values = {name: sum(one[name] for one in every) / len(every) for name in every[0]}
        shown = {name: values.pop(name) for name in (self.task.main_metric, "relative_flops")}
        if len(every) > 1:
            for evaluated, one in zip(self.evaluated, every, strict=True):
                values |= {f"budget_{evaluated.budget:g}/{name}": one[name] for name in shown}
        # The values are exact and equal on every rank already; Lightning wants to hear that they are synchronised.
        several = self.trainer.world_size > 1
        self.log_dict({f"val/{name}": value for name, value in shown.items()}, prog_bar=True, sync_dist=several)
        self.log_dict({f"val/{name}": value for name, value in values.items()}, sync_dist=several)
        if self.trainer.is_global_zero and self.trainer.state.fn == "fit" and not sys.stderr.isatty():
            # where no progress bar can be seen (a file, a cluster's log), a line an evaluation
            progress = ", ".join(f"{name} {value:.4f}" for name, value in shown.items())
            log.info("step %d of %d: %s", self.global_step, self.total_steps, progress)
