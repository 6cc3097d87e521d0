"""Data: tasks and their metrics, where examples come from, batches and Lightning's DataModule."""

#: Endings of files that hold rows and columns.
TABLE_SUFFIXES = (".parquet", ".jsonl", ".csv", ".tsv")
