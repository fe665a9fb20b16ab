"""Weights and activations of an ONNX model in 8 bits, by onnxruntime."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CALIBRATED_ON = 512
_BATCH = 32
# What has most of the work. With pooling and ReLU among them report_cnn took twice as long for 64
# images (onnxruntime 1.32, AVX512-VNNI, 2026-11-26); normalization stays exact.
_OPERATORS = ("Conv", "Gemm", "MatMul")


@contextmanager
def quietly() -> Iterator[None]:
    """Nothing that exporters warn of, log and print: what they made is checked, or they raise."""
    before = logging.root.manager.disable
    logging.disable()
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def quantized(model: bytes, images: NDArray[np.float32]) -> bytes:
    """The model with int8 weights (a scale for each channel) and uint8 activations (QDQ, static).

    Args:
        model: ONNX, with the input ``images``.
        images: (N, 3, H, W) in [0, 1]; the ranges of the activations are theirs.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # ships no types
        def __init__(self) -> None:
            starts = range(0, len(images), _BATCH)
            self._parts: Iterator[NDArray[np.float32]] = (images[i : i + _BATCH] for i in starts)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            part = next(self._parts, None)
            return None if part is None else {"images": part}

    with quietly(), tempfile.TemporaryDirectory() as folder:
        given, prepared, made = (Path(folder) / name for name in ("given", "prepared", "made"))
        given.write_bytes(model)
        quant_pre_process(given, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            made,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_OPERATORS),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
        return made.read_bytes()
