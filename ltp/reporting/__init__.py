"""Comparison of finished runs: tables, files and figures. Requires neither Hydra nor Lightning.

``collect`` finds and reads the runs, ``rows`` groups comparable runs, ``text`` formats rows, and ``table``,
``documents`` and ``figures`` write the output.
"""
