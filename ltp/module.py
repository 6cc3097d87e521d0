"""The LightningModule: what a training step and an evaluation are, for every stage and method."""

import logging
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torchmetrics import Metric
from transformers import get_linear_schedule_with_warmup

from ltp.data import GLUEDataModule
from ltp.errors import RunError
from ltp.flops import dense_layer_flops, layer_flops
from ltp.modeling import LTPForSequenceClassification
from ltp.tasks import Task, build_metrics

log = logging.getLogger(__name__)


class CostMetric(Metric):
    """FLOPs and tokens alive, summed over a split exactly, whatever the number of processes.

    Args:
        num_layers: L.
        hidden_size: D.
        intermediate_size: I.
    """

    full_state_update = False
    token_sums: Tensor
    flops: Tensor
    dense_flops: Tensor
    examples: Tensor

    def __init__(self, num_layers: int, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.num_layers, self.hidden_size, self.intermediate_size = num_layers, hidden_size, intermediate_size
        zeros = {"token_sums": num_layers + 1, "flops": num_layers, "dense_flops": num_layers, "examples": 1}
        for name, size in zeros.items():
            self.add_state(name, torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, token_lengths: Tensor) -> None:
        """Add a batch: tokens alive entering each layer and after the last, (B, L+1) int64."""
        sizes = (self.hidden_size, self.intermediate_size)
        self.token_sums += token_lengths.double().sum(dim=0)
        self.flops += layer_flops(token_lengths, *sizes).sum(dim=0)
        self.dense_flops += dense_layer_flops(token_lengths[:, 0], self.num_layers, *sizes).sum(dim=0)
        self.examples += len(token_lengths)

    def compute(self) -> dict[str, Any]:
        """Means over the examples: see the keys. FLOPs are in GFLOPs an example."""
        per_layer = self.flops / self.examples / 1e9
        dense = self.dense_flops / self.examples / 1e9
        tokens = self.token_sums / self.examples
        return {
            "relative_flops": (per_layer.sum() / dense.sum()).item(),
            "gflops": per_layer.sum().item(),
            "dense_gflops": dense.sum().item(),
            "gflops_per_layer": per_layer.tolist(),
            "tokens_per_layer": tokens.tolist(),
        }


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
    ) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.lr, self.lr_threshold, self.weight_decay = lr, lr_threshold, weight_decay
        self.warmup_steps, self.total_steps = math.ceil(warmup_ratio * total_steps), total_steps
        self.seed = seed
        self.validation_splits = tuple(validation_splits)
        self.scores: Any = torch.nn.ModuleList(build_metrics(task) for _ in self.validation_splits)
        self.last_scores: dict[str, float] = {}
        self.last_cost: dict[str, Any] = {}
        config = model.config
        self.cost = CostMetric(config.num_hidden_layers, config.hidden_size, config.intermediate_size)
        if model.thresholds is not None:
            # ddp refuses parameters without a gradient, so fixed thresholds must say that they take none
            model.thresholds.requires_grad_(lr_threshold is not None)

    # ----------------------------------------------------------------------------------------------- training

    def on_fit_start(self) -> None:
        """Leave the evaluation mode that ``from_pretrained`` returns, else dropout would stay off."""
        self.model.train()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make dropout a function of (seed, step, rank), so that a resumed run draws the same masks."""
        self._number_lines()
        part = batch_idx % self.trainer.accumulate_grad_batches
        state = np.random.SeedSequence((self.seed, self.global_step, part, self.global_rank)).generate_state(1)
        torch.manual_seed(int(state[0]))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The objective of one micro-batch, weighted so that the optimiser step's is the mean over its examples."""
        output = self.model(**batch)
        self._check_finite(output.loss)
        rows = len(batch["labels"])
        self.log("train/loss", output.loss.detach(), prog_bar=True, batch_size=rows)
        if output.gate_sums is not None:
            kept = output.gate_sums.detach().mean(dim=0) / output.token_lengths[:, 0].double().mean()
            self.log("train/kept_fraction", kept.mean().float(), prog_bar=True, batch_size=rows)
        datamodule: GLUEDataModule = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
        return output.loss * datamodule.loss_weight(batch_idx, rows)

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

    def _number_lines(self) -> None:
        """Number the loggers' lines by optimiser steps: after a resume Lightning only guesses."""
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.global_step

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and linear decay; thresholds in a group of their own."""
        optimizer = AdamW(self._parameter_groups(), lr=self.lr)
        schedule = get_linear_schedule_with_warmup(optimizer, self.warmup_steps, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _parameter_groups(self) -> list[dict[str, Any]]:
        decayed, plain, thresholds = [], [], []
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            if name.startswith("pruner."):
                thresholds.append(parameter)
            elif parameter.ndim < 2:
                plain.append(parameter)
            else:
                decayed.append(parameter)
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        if thresholds:
            groups.append({"params": thresholds, "weight_decay": 0.0, "lr": self.lr_threshold})
        return groups

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the learning rate that the step uses."""
        self.log("train/lr", optimizer.param_groups[0]["lr"])

    # --------------------------------------------------------------------------------------------- evaluation

    def on_validation_start(self) -> None:
        """Number the evaluation after the training, which may have been over when this process began."""
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            self._number_lines()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the metrics, under the hard rule."""
        output = self.model(**batch)
        logits = output.logits.float()
        predictions = logits.squeeze(-1) if self.task.is_regression else logits.argmax(dim=-1)
        self.scores[dataloader_idx].update(predictions, batch["labels"])
        if dataloader_idx == 0:
            self.cost.update(output.token_lengths)

    def on_validation_epoch_end(self) -> None:
        """Compute the metrics once over the whole split and log them."""
        self.last_scores = {}
        for number, (split, scores) in enumerate(zip(self.validation_splits, self.scores, strict=True)):
            suffix = "_" + split.removeprefix("validation_") if number else ""
            self.last_scores |= {f"{name}{suffix}": value.item() for name, value in scores.compute().items()}
            scores.reset()
        self.last_cost = self.cost.compute()
        self.cost.reset()
        tokens = self.last_cost["tokens_per_layer"]
        shown = {self.task.main_metric: self.last_scores[self.task.main_metric]}
        shown["relative_flops"] = self.last_cost["relative_flops"]
        quiet = {name: value for name, value in self.last_scores.items() if name not in shown}
        quiet["gflops"] = self.last_cost["gflops"]
        for layer, kept in enumerate(tokens[1:], start=1):
            quiet[f"kept_fraction/layer_{layer:02d}"] = kept / tokens[0]
        if self.model.thresholds is not None:
            for layer, threshold in enumerate(self.model.thresholds.tolist(), start=1):
                quiet[f"threshold/layer_{layer:02d}"] = threshold
        # The values are exact and equal on every rank already; Lightning wants to hear that they are synchronised.
        several = self.trainer.world_size > 1
        self.log_dict({f"val/{name}": value for name, value in shown.items()}, prog_bar=True, sync_dist=several)
        self.log_dict({f"val/{name}": value for name, value in quiet.items()}, sync_dist=several)
        if self.trainer.is_global_zero and self.trainer.state.fn == "fit" and not sys.stderr.isatty():
            # where no progress bar can be seen (a file, a cluster's log), a line an evaluation
            progress = ", ".join(f"{name} {value:.4f}" for name, value in shown.items())
            log.info("step %d of %d: %s", self.global_step, self.total_steps, progress)
