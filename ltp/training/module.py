"""The LightningModule: training and validation steps for every stage and pruning method."""

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
from ltp.data.tasks import Task
from ltp.errors import RunError
from ltp.evaluation.cost import CostMetric
from ltp.execution.output import LTPOutput
from ltp.model.pretrained import LTPPreTrainedModel
from ltp.pruning import DENSE_MODE, method_class
from ltp.pruning.method import Method
from ltp.training.budget import BudgetMultiplier, sampled_budget
from ltp.training.distillation import Distillation, logits_loss
from ltp.training.policy import policy_loss, row_losses
from ltp.training.saliency import saliency

log = logging.getLogger(__name__)

#: Number of training rows on which budgets are calibrated between optimiser steps.
CALIBRATION_ROWS = 512
#: Number of rows before an evaluation. With 512 rows its cost would have a standard error of about 0.01.
EVALUATION_ROWS = 2048
#: Optimiser steps between two measurements of a soft training's cost under the hard rule.
MEASURE_EVERY = 20
#: Optimiser steps between two calibrations of a budget whose thresholds are not trained.
RECALIBRATE_EVERY = 50


@dataclass
class BudgetEvaluation:
    """Results of the last evaluation for one budget.

    Attributes:
        budget: relative FLOPs; None without budgets.
        scores: metrics by name.
        cost: output of :meth:`ltp.evaluation.cost.CostMetric.compute`.
        thresholds: thresholds of layers 1..L; None if the method has none.
    """

    budget: float | None
    scores: dict[str, float] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    thresholds: list[float] | None = None

    def logged(self) -> dict[str, float]:
        """Return the values to log, by name."""
        tokens = self.cost["tokens_per_layer"]
        values = {**self.scores, "relative_flops": self.cost["relative_flops"], "gflops": self.cost["gflops"]}
        for layer, kept in enumerate(tokens[1:], start=1):
            values[f"kept_fraction/layer_{layer:02d}"] = kept / tokens[0]
        for layer, threshold in enumerate(self.thresholds or (), start=1):
            values[f"threshold/layer_{layer:02d}"] = threshold
        return values


class LTPModule(pl.LightningModule):
    """Trains and evaluates a pruned model.

    Args:
        model: the model; its configuration sets the masking mode of the training.
        task: the task, with known labels.
        lr: peak learning rate of the weights.
        learns: whether the method's parameters are trained; if not, they are frozen.
        lr_pruning: peak learning rate of the method's parameters; None for ``lr``.
        weight_decay: weight decay of weight matrices (biases, normalisation and the method's parameters have none).
        warmup_ratio: share of the steps with linear warm-up; the learning rate then decays linearly to 0.
        total_steps: number of optimiser steps.
        seed: seed of dropout, together with step and rank.
        validation_splits: names of the splits in the order of the dataloaders; the first is the main split.
        budgets: relative FLOPs to train for, ascending; evaluations run at each. A soft training trains only the
            lowest, controlled by a multiplier. Other trainings draw one budget per optimiser step, and calibration
            keeps the thresholds at their budgets.
        dense_flops: mean dense FLOPs of a training example; required for a soft training with budgets.
        distillation: teacher and loss weights; None trains on the labels only.
        guide: the dense model whose saliency teaches the scores of a method that needs it; None for none.
        fused: use fused AdamW, which makes a training step of a 6-layer MiniLM on a CPU a sixth faster. Lightning
            cannot clip gradients of a fused optimiser in mixed precision.
        of_splits: the task for the metrics of each split; none for ``task``.
    """

    def __init__(
        self,
        model: LTPPreTrainedModel,
        task: Task,
        *,
        lr: float = 2e-5,
        learns: bool = False,
        lr_pruning: float | None = None,
        weight_decay: float = 0.0,
        warmup_ratio: float = 0.0,
        total_steps: int = 1,
        seed: int = 0,
        validation_splits: Sequence[str] = ("validation",),
        budgets: Sequence[float] = (),
        dense_flops: float | None = None,
        distillation: Distillation | None = None,
        guide: LTPPreTrainedModel | None = None,
        fused: bool = True,
        of_splits: Sequence[Task] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.lr, self.lr_pruning, self.weight_decay = lr, lr_pruning or lr, weight_decay
        self.warmup_steps, self.total_steps = math.ceil(warmup_ratio * total_steps), total_steps
        self.seed, self.fused = seed, fused
        self.validation_splits = tuple(validation_splits)
        config = model.config
        self.budgets = tuple(budgets)
        self.multiplier: BudgetMultiplier | None = None
        if budgets and config.masking_mode != "hard":
            assert dense_flops is not None
            self.multiplier = BudgetMultiplier(budgets[0], dense_flops=dense_flops, cost=model.cost)
        self.distillation = distillation
        # in a tuple, so that it is no part of the module
        self._guide = () if guide is None else (guide.requires_grad_(False).eval(),)
        self.evaluated = [BudgetEvaluation(budget) for budget in self.budgets or (None,)]
        self.scores: Any = nn.ModuleList(
            nn.ModuleList(own.build_metrics() for own in of_splits or [task] * len(self.validation_splits))
            for _ in self.evaluated
        )
        self.costs: Any = nn.ModuleList(CostMetric(model.cost) for _ in self.evaluated)
        model.pruner.requires_grad_(learns)  # DDP raises an error for trainable parameters without a gradient
        model.pruner.freeze_idle_layers()

    def on_fit_start(self) -> None:
        """Set training mode (``from_pretrained`` returns evaluation mode), and move the teachers to the device."""
        self.model.train()
        for guide in self._guide:
            guide.to(self.device)
        if self.distillation is not None:
            self.distillation.teacher.to(self.device)  # type: ignore[arg-type]  # transformers wraps it

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed dropout by (seed, step, micro-batch, rank), so that a resumed run draws the same masks."""
        self._sync_logger_step()
        micro_batch = batch_idx % self.trainer.accumulate_grad_batches
        if self.budgets and micro_batch == 0:
            self._apply_budget(self.global_step)
        state = np.random.SeedSequence((self.seed, self.global_step, micro_batch, self.global_rank)).generate_state(1)
        torch.manual_seed(int(state[0]))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the micro-batch's loss, weighted so that an optimiser step averages over its examples."""
        distillation = self.distillation
        pruner = self.model.pruner
        datamodule: GLUEDataModule = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
        rows, label_weight = len(batch["labels"]), datamodule.label_weight(batch_idx, batch["labels"])
        samples = 1 if self.model.config.masking_mode == "hard" else pruner.method.samples
        if samples > 1:
            batch = {name: torch.cat([value] * samples) for name, value in batch.items()}
        in_use, passes = pruner.method, self._further_passes()
        if passes:
            pruner.method = method_class(DENSE_MODE)()
        wanted = {}
        if distillation is not None:
            wanted = {"output_class_states": distillation.needs_states, "output_scores": distillation.needs_scores}
        if self._guide or samples > 1:
            wanted["output_scores"] = True
        labels = batch["labels"]
        targets = self.task.model_labels(labels)
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        label_inputs = self.task.model_inputs(labels)
        output = self.model(**inputs, **label_inputs, **wanted)
        loss = output.loss
        if distillation is not None:
            task_loss = self.model.task_loss(output.logits, targets)
            loss = loss + distillation.added_loss(output, batch, task_loss)
        for method in passes:  # what keeps every token teaches them
            pruner.method = method
            logits = self.model(**inputs).logits
            student, teacher = (self.task.of_labels(part, labels) for part in (logits, output.logits.detach()))
            loss = loss + logits_loss(student, teacher, temperature=1.0, several=self.task.has_several_labels)
        loss, pruner.method = loss / (1 + len(passes)), in_use
        penalty = None if label_weight is None else self.model.with_penalty(loss.new_zeros(()), output)
        taught = self._guidance(output, inputs, label_inputs, rows)
        for added in (taught, self._reinforcement(output, targets, samples), self._price(output)):
            loss, penalty = loss + added, None if penalty is None else penalty + added
        self._check_finite(loss)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=rows)
        if output.gate_sums is not None:
            kept = output.gate_sums.detach().mean(dim=0) / output.token_lengths[:, 0].double().mean()
            self.log("train/kept_fraction", kept.mean().float(), prog_bar=True, batch_size=rows)
        row_weight = datamodule.loss_weight(batch_idx, rows)
        if label_weight is None or penalty is None:
            return loss * row_weight
        # the task's loss is a mean over the labels of the optimiser step, the penalty over its rows
        return (loss - penalty) * label_weight + penalty * row_weight

    def _guidance(
        self, output: LTPOutput, inputs: dict[str, Tensor], labels: dict[str, Tensor], rows: int
    ) -> Tensor | float:
        """Return what the guide teaches, a mean over the rows: the first ones, of which the others are samples."""
        if not self._guide:
            return 0.0
        pruner = self.model.pruner
        assert output.scores is not None
        own = ({name: value[:rows] for name, value in part.items()} for part in (inputs, labels))
        return pruner.method.guidance(output.scores[self._decided][:, :rows], saliency(*self._guide, *own), pruner)

    def _reinforcement(self, output: LTPOutput, targets: Tensor, samples: int) -> Tensor | float:
        """Return what the samples of each example teach, a mean over the rows."""
        if samples == 1:
            return 0.0
        assert output.logits is not None and output.scores is not None and output.gates is not None
        rewards = -row_losses(self.model, output.logits, targets)
        return policy_loss(output.scores[self._decided], output.gates[self._decided], rewards, samples)

    @property
    def _decided(self) -> list[int]:
        """Indices of the layers in which tokens leave."""
        return [index for index, decides in enumerate(self.model.pruner.decides) if decides]

    def _price(self, output: LTPOutput) -> Tensor | float:
        """Return the price of the cost under a budget, a mean over the rows."""
        if self.multiplier is None:
            return 0.0
        assert output.expected_lengths is not None
        return self.multiplier.penalty(output.expected_lengths)

    def _further_passes(self) -> Sequence[Method]:
        if self.model.config.masking_mode != "hard":
            return ()
        pruner = self.model.pruner
        return pruner.method.passes(pruner.shape.num_layers, self.seed, self.global_step)

    def _check_finite(self, loss: Tensor) -> None:
        non_finite = (~torch.isfinite(loss.detach())).float()
        if self.trainer.world_size > 1:  # all ranks must stop together, or the others deadlock
            non_finite = self.trainer.strategy.reduce(non_finite, reduce_op="sum")
        if non_finite.item():
            saved = "" if self.trainer.fast_dev_run else ", and the last checkpoint holds finite weights"  # type: ignore[attr-defined]
            raise RunError(
                f"the loss is {loss.item()} at step {self.global_step}: training stopped before this step's "
                f"update{saved}. Lower lr, or the weight of the method's penalty, or use trainer.precision=32-true."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Reset the batch counters to the last optimiser step: checkpoints hold no accumulated gradients."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        accumulated = progress["current"]["processed"] % self.trainer.accumulate_grad_batches
        if accumulated or progress["current"]["ready"] > progress["current"]["processed"]:
            for counts in (progress["total"], progress["current"]):
                done = counts["processed"] - accumulated
                counts.update(ready=done, started=done, processed=done, completed=done)
            progress["is_last_batch"] = False

    def _sync_logger_step(self) -> None:
        """Set Lightning's logging step to the optimiser step; after a resume Lightning only estimates it."""
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.global_step

    def configure_optimizers(self) -> Any:
        """Return AdamW with linear warm-up and decay; the method's parameters have their own parameter group."""
        optimizer = AdamW(self._parameter_groups(), lr=self.lr, fused=self.fused)
        schedule = get_linear_schedule_with_warmup(optimizer, self.warmup_steps, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _parameter_groups(self) -> list[dict[str, Any]]:
        trained = [(name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        pruning = [parameter for name, parameter in trained if name.startswith("pruner.")]
        weights = [parameter for name, parameter in trained if not name.startswith("pruner.")]
        groups = [
            {"params": [weight for weight in weights if weight.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
        ]
        if pruning:
            groups.append({"params": pruning, "weight_decay": 0.0, "lr": self.lr_pruning})
        return groups

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient norm; in a soft training with budgets clip weights and the method's parameters separately.

        There the norm of the thresholds' gradient is 10 to 200 times that of the weights: with a joint norm the
        weights would hardly learn.
        """
        if self.multiplier is None or not gradient_clip_val:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        *weights, pruning = (group["params"] for group in optimizer.param_groups)
        nn.utils.clip_grad_norm_([weight for group in weights for weight in group], gradient_clip_val)
        nn.utils.clip_grad_norm_(pruning, gradient_clip_val)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the step's learning rate, and update the multiplier with the step's cost."""
        self.log("train/lr", optimizer.param_groups[0]["lr"])
        if self.multiplier is not None:
            expected = self.multiplier.update(self.model.thresholds, self._total)
            self.log("train/lambda", self.multiplier.value.float())
            self.log("train/expected_flops", expected, prog_bar=True)

    def _apply_budget(self, step: int) -> None:
        """Select the budget that an optimiser step trains, and recalibrate or measure it periodically."""
        if self.multiplier is not None:
            if self.model.thresholds is None:  # what is searched does not change the gates: the price alone works
                return
            if step == 0:
                self.calibrate(indices=[0])
            self._use_budget(0)
            if step and step % MEASURE_EVERY == 0:
                self.multiplier.measured(self._sample_cost())
            return
        if step == 0:
            self.calibrate()
        self._use_budget(sampled_budget(self.budgets, self.seed, step))
        if self.model.pruner.method.cost_depends_on_weights and step and step % RECALIBRATE_EVERY == 0:
            self.calibrate(indices=[self._budget_in_use])

    def _calibrate_for_evaluation(self) -> None:
        """Calibrate the budgets before an evaluation."""
        if self.multiplier is None:
            self.calibrate(rows=EVALUATION_ROWS)
            return
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            self.calibrate(indices=[0], rows=EVALUATION_ROWS)  # during fit the multiplier controls it
        self._use_budget(0)
        if self.model.config.budgets:
            self.model.pruner.share_thresholds()
        self.calibrate(indices=range(1, len(self.budgets)), rows=EVALUATION_ROWS)

    def calibrate(self, indices: Sequence[int] | None = None, rows: int = CALIBRATION_ROWS) -> None:
        """Scale the thresholds of budgets until the calibration sample has the budgets' cost.

        Every process measures its share of the sample; the result is equal in all processes.

        Args:
            indices: indices into ``budgets``; None calibrates all.
            rows: size of the sample, over all processes.

        Raises:
            RunError: a budget cannot be reached.
        """
        in_use = self._budget_in_use
        for index in range(len(self.budgets)) if indices is None else indices:
            self._use_budget(index)
            budget = self.budgets[index]
            try:
                calibrate(self.model, lambda: self._sample_cost(rows), budget)
            except (UnreachableError, AboveDenseError) as error:
                raise RunError(
                    f"the budget {budget:g} cannot be held: {error} (relative FLOPs of {rows} training "
                    "examples, or all). Ask for another with prune.target_flops or budgets."
                ) from error
        self._use_budget(in_use)

    def _sample_cost(self, rows: int = CALIBRATION_ROWS) -> float:
        """Return the relative FLOPs of the calibration sample under the hard rule, as in an evaluation."""
        datamodule: GLUEDataModule = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
        batches = datamodule.calibration_batches(rows)
        with self.trainer.precision_plugin.forward_context():
            flops, dense = self._total(measured_flops(self.model, batches)).tolist()
        return flops / dense

    @property
    def _budget_in_use(self) -> int:
        """Index of the budget whose thresholds the model uses; 0 without budgets."""
        budget = self.model.budget
        return 0 if budget is None else self.budgets.index(budget)

    def _use_budget(self, index: int) -> None:
        if self.model.config.budgets:
            self.model.use_budget(self.budgets[index])

    def _total(self, value: Tensor) -> Tensor:
        """Sum a tensor over all processes."""
        if self.trainer.world_size == 1:
            return value
        return self.trainer.strategy.reduce(value.to(self.device), reduce_op="sum").cpu()

    def on_validation_start(self) -> None:
        """Calibrate the budgets. After the training, also set the logging step: a resumed run may skip the fit."""
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            self._sync_logger_step()
        if self.budgets:
            self._calibrate_for_evaluation()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Update the metrics of each budget with a batch, under the hard rule."""
        in_use = self._budget_in_use
        for index, (scores, cost) in enumerate(zip(self.scores, self.costs, strict=True)):
            self._use_budget(index)
            output = self.model(**{name: value for name, value in batch.items() if name != "labels"})
            predictions = self.task.predictions(output.logits.float())
            scores[dataloader_idx].update(predictions, batch["labels"])
            if dataloader_idx == 0:
                cost.update(output.token_lengths)
        self._use_budget(in_use)

    def on_validation_epoch_end(self) -> None:
        """Compute the metrics over the whole split; log their means over the budgets, and the values of each budget."""
        in_use = self._budget_in_use
        for index, evaluated in enumerate(self.evaluated):
            self._use_budget(index)
            thresholds = self.model.thresholds
            evaluated.thresholds = None if thresholds is None else thresholds.tolist()
            evaluated.scores = {}
            for split, scores in zip(self.validation_splits, self.scores[index], strict=True):
                suffix = "" if split == self.validation_splits[0] else "_" + split.removeprefix("validation_")
                evaluated.scores |= {f"{name}{suffix}": value.item() for name, value in scores.compute().items()}
                scores.reset()
            evaluated.cost = self.costs[index].compute()
            self.costs[index].reset()
        self._use_budget(in_use)
        logged = [evaluated.logged() for evaluated in self.evaluated]
        means = {name: sum(values[name] for values in logged) / len(logged) for name in logged[0]}
        main = {name: means.pop(name) for name in (self.task.main_metric, "relative_flops")}
        if len(logged) > 1:
            for evaluated, values in zip(self.evaluated, logged, strict=True):
                means |= {f"budget_{evaluated.budget:g}/{name}": values[name] for name in main}
        # The values are already exact and equal on every rank; sync_dist only avoids Lightning's warning.
        sync_dist = self.trainer.world_size > 1
        self.log_dict({f"val/{name}": value for name, value in main.items()}, prog_bar=True, sync_dist=sync_dist)
        self.log_dict({f"val/{name}": value for name, value in means.items()}, sync_dist=sync_dist)
        if self.trainer.is_global_zero and self.trainer.state.fn == "fit" and not sys.stderr.isatty():
            # without a visible progress bar (a file, a cluster's log): one line per evaluation
            progress = ", ".join(f"{name} {value:.4f}" for name, value in main.items())
            log.info("step %d of %d: %s", self.global_step, self.total_steps, progress)
