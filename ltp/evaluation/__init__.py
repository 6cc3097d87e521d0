"""Evaluation of a split, prediction of texts, and the HTML page of pruned tokens."""
