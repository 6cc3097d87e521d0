"""Tasks and metrics, loading of splits, batching, and the Lightning DataModule."""

#: Suffixes of files with named columns.
TABLE_SUFFIXES = (".parquet", ".jsonl", ".csv", ".tsv")

#: Suffix of CoNLL-style files, a word and its label on a line.
CONLL = ".conll"

#: Suffix of files of SQuAD's form.
SQUAD = ".json"
