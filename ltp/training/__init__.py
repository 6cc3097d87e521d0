"""Training: the LightningModule, the training run, distillation, FLOPs budgets, and resuming."""
