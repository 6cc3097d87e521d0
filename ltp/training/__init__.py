"""Training: the LightningModule, the run around it, distillation, budgets, and resuming."""
