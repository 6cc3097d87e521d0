"""Finished runs for use elsewhere: a Hugging Face directory that needs no ltp, or an ONNX graph that prunes.

:func:`export_huggingface` and :func:`export_onnx` are behind ``python -m ltp.export``. Needs neither Hydra nor
Lightning.
"""
