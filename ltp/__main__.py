"""``python -m ltp``: the list of commands."""
