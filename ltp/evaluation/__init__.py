"""Evaluating a split, predicting texts, and the page that shows what was pruned."""
