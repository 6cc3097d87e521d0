"""The encoder families that were imported. Imports neither PyTorch nor transformers."""

from typing import Any

#: Classes by the ``model_type`` of their configuration; filled by
#: :meth:`ltp.encoders.base.EncoderFamily.__init_subclass__`.
REGISTERED: dict[str, Any] = {}
