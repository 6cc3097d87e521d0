"""Export of finished runs: a Hugging Face directory that does not require ltp, or a graph that prunes.

``python -m ltp.export`` calls :func:`export_huggingface` and :func:`export_graph`. This package requires neither Hydra
nor Lightning.
"""
