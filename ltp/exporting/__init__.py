"""Export of finished runs: a Hugging Face directory that does not require ltp, or an ONNX graph that prunes.

``python -m ltp.export`` calls :func:`export_huggingface` and :func:`export_onnx`. This package requires neither Hydra
nor Lightning.
"""
