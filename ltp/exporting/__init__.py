"""Finished runs for use elsewhere: a Hugging Face directory that needs no ltp, or an ONNX graph that prunes.

:func:`export_huggingface` and :func:`export_onnx` are behind ``python -m ltp.export``. Needs neither Hydra nor
Lightning.
"""

from ltp.exporting.agreement import Agreement, DisagreementError, compare_results
from ltp.exporting.card import model_card
from ltp.exporting.flat import flat_sources
from ltp.exporting.folders import check_target, new_folder
from ltp.exporting.graph import GraphForm, write_onnx
from ltp.exporting.run import GRAPH_FILE, ExportedRun, export_huggingface, export_onnx, graph_engine
from ltp.exporting.speed import Speed, compare_speed

__all__ = [
    "GRAPH_FILE",
    "Agreement",
    "DisagreementError",
    "ExportedRun",
    "GraphForm",
    "Speed",
    "check_target",
    "compare_results",
    "compare_speed",
    "export_huggingface",
    "export_onnx",
    "flat_sources",
    "graph_engine",
    "model_card",
    "new_folder",
    "write_onnx",
]
