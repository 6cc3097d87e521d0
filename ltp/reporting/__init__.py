"""Finished runs side by side: tables, files and figures. Needs neither Hydra nor Lightning.

``collect`` finds and reads the runs, ``rows`` makes comparable groups and their rows of them, ``text`` says a row in
words; ``table``, ``documents`` and ``figures`` show them.
"""
