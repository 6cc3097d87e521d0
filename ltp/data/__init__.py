"""Tasks and metrics, loading of splits, batching, and the Lightning DataModule."""
