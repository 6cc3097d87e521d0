"""Data: tasks and their metrics, where examples come from, batches and Lightning's DataModule."""
