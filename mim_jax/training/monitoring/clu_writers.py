"""clu's metric writers, which the others here extend, without TensorFlow.

`clu.metric_writers` imports its TensorFlow writer eagerly. Where TensorFlow is not installed, that one module is stood in for
while the package is imported; nothing else of clu is touched, and whoever asks for its SummaryWriter is told what is missing.
"""

import importlib.util
import sys
import types
from typing import Any


class _NoSummaryWriter:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise ImportError("clu's SummaryWriter needs TensorFlow, which is not installed")


_TENSORFLOW_WRITER = "clu.metric_writers.summary_writer"
if importlib.util.find_spec("tensorflow") is None and _TENSORFLOW_WRITER not in sys.modules:
    _stand_in = types.ModuleType(_TENSORFLOW_WRITER)
    _stand_in.SummaryWriter = _NoSummaryWriter  # type: ignore[attr-defined]
    sys.modules[_TENSORFLOW_WRITER] = _stand_in

from clu.metric_writers import MetricWriter, MultiWriter  # noqa: E402

__all__ = ["MetricWriter", "MultiWriter", "ScalarWriter"]


class ScalarWriter(MetricWriter):
    """A clu MetricWriter of scalars: `write_scalars(step, scalars)` and `close()` are left to define.

    Whatever else clu's interface has is refused, not dropped.
    """

    def _refuse(self, kind: str) -> None:
        raise NotImplementedError(f"{type(self).__name__} writes scalars, no {kind}")

    def write_summaries(self, step: int, values: Any, metadata: Any = None) -> None:
        self._refuse("summaries")

    def write_images(self, step: int, images: Any) -> None:
        self._refuse("images")

    def write_videos(self, step: int, videos: Any) -> None:
        self._refuse("videos")

    def write_audios(self, step: int, audios: Any, *, sample_rate: int) -> None:
        self._refuse("audios")

    def write_texts(self, step: int, texts: Any) -> None:
        self._refuse("texts")

    def write_histograms(self, step: int, arrays: Any, num_buckets: Any = None) -> None:
        self._refuse("histograms")

    def write_hparams(self, hparams: Any) -> None:
        self._refuse("hyperparameters")

    def flush(self) -> None:
        """Nothing is held back for longer than the writer says."""
