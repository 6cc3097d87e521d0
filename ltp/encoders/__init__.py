"""Encoder families: adapters to Hugging Face models. No other package accesses the internals of these models.

To add a family, write one file with a subclass of :class:`~ltp.encoders.base.EncoderFamily`, and add it to
:data:`~ltp.encoders.registry.SHIPPED`; from outside the package, name the class by an entry point of ``ltp.encoders``.
This module imports neither PyTorch nor transformers.
"""

from ltp.encoders.registry import encoder_family, known_families, unknown_family

__all__ = ["encoder_family", "known_families", "unknown_family"]
