"""A finished classifier as one file for other programs: ONNX in floats or 8 bits, or torch.export's .pt2."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from semisup.errors import SemisupError
from semisup.files import write_atomically
from semisup.stages.deployed import INPUT, OUTPUTS, Deployed, check_same, dynamic_shapes
from semisup.stages.predictor import Predictor

__all__ = ["Run", "quantize", "require_onnx", "run_onnx", "write_onnx", "write_pt2"]

Run = Callable[[NDArray[np.uint8]], list[NDArray[np.float32]]]
"""Images to probabilities and embeddings."""

OPSET = 20
"""Of ONNX: from 18 on it scales images with antialiasing."""
QUANTIZED = ("Conv", "Gemm", "MatMul", "Add", "Mul", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat")
"""Kinds of layers that compute with 8 bits; what comes before the first and after the last of them stays in floats."""


def require_onnx() -> None:
    """Complain where the extra is not installed.

    Raises:
        SemisupError: it is not.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise SemisupError(f"export to ONNX needs {error.name}: pip install 'semisup[onnx]'") from error


def write_onnx(
    predictor: Predictor, module: Deployed, metadata: Mapping[str, str], images: NDArray[np.uint8], file: Path
) -> dict[str, float]:
    """Write an ONNX file, which gets its name once it has given what torch gives.

    Args:
        predictor: on the CPU.
        module: the same, for export.
        metadata: travels in the file.
        images: real ones, of the network's size.
        file: to write.

    Returns:
        The largest differences from torch, by output.

    Raises:
        SemisupError: the network cannot be exported, or the file gives something else.
    """
    with _quiet():
        try:
            program = torch.onnx.export(
                module,
                (torch.from_numpy(_ragged(images)),),
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamic_shapes=dynamic_shapes(),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise SemisupError(f"{file}: torch cannot export this network ({str(error)[:500]})") from error
    assert program is not None
    model = program.model_proto
    payload = _with_metadata(model, {**metadata, "precision": "float32"})
    worst = check_same(run_onnx(payload), predictor, module, images, str(file))
    write_atomically(file, payload)
    return worst


def _with_metadata(model: Any, metadata: Mapping[str, str]) -> bytes:
    """Return an ONNX model's bytes with these texts and no others: torch leaves traces of this machine's paths."""
    for node in model.graph.node:
        del node.metadata_props[:]
    del model.metadata_props[:]
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    payload: bytes = model.SerializeToString()
    return payload


def run_onnx(model: bytes | Path) -> Run:
    """Return an ONNX file as a function, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
    )

    def run(images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        found: list[NDArray[np.float32]] = session.run(list(OUTPUTS), {INPUT: images})
        return found

    return run


def write_pt2(
    predictor: Predictor, module: Deployed, metadata: Mapping[str, str], images: NDArray[np.uint8], file: Path
) -> dict[str, float]:
    """Write what `torch.export.load` reads; arguments as of `write_onnx`.

    The metadata are its extra file `metadata.json`.
    """
    with _quiet():
        program = torch.export.export(
            module, (torch.from_numpy(_ragged(images)),), dynamic_shapes=dynamic_shapes(), strict=False
        )
        written = io.BytesIO()
        torch.export.save(program, written, extra_files={"metadata.json": json.dumps(dict(metadata), indent=1)})
        loaded = torch.export.load(io.BytesIO(written.getvalue())).module()

    def run(given: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        with torch.inference_mode():
            return [value.numpy() for value in loaded(torch.from_numpy(given))]

    worst = check_same(run, predictor, module, images, str(file))
    write_atomically(file, written.getvalue())
    return worst


def quantize(source: Path, images: NDArray[np.uint8], metadata: Mapping[str, str], file: Path) -> Run:
    """Write an ONNX file with 8-bit activations and weights (QDQ, static), and return it as a function.

    Of a weight's 8 bits 7 are used, as onnxruntime advises for x86 without VNNI: there, sums of two products overflow
    16 bits. A student of the stamps had 41.3% with all 8 bits, 50.5 with 7 and in floats.

    Args:
        source: the same in floats, as of `write_onnx`.
        images: training images (n, size, size, C) whose activations say what range 8 bits have to hold.
        metadata: travels in the file.
        file: to write.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Gives the images, 32 at a time."""

        def __init__(self) -> None:
            self.parts = iter(np.array_split(images, max(1, len(images) // 32)))

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            """Return the next input; None: there are no more."""
            part = next(self.parts, None)
            return None if part is None else {INPUT: np.ascontiguousarray(part)}

    with tempfile.TemporaryDirectory(prefix="semisup-int8-") as temporary, _quiet():
        ready, done = Path(temporary) / "ready.onnx", Path(temporary) / "int8.onnx"
        quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
        quantize_static(
            str(ready),
            str(done),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_around(ready),
        )
        payload = _with_metadata(onnx.load(str(done)), {**metadata, "precision": "int8"})
    write_atomically(file, payload)
    return run_onnx(payload)


def _around(file: Path) -> list[str]:
    """Return the names of what stands before the first layer with weights and after the last.

    That is the scaling of the images, and what the probabilities are made of. Images are scaled by matrix products,
    too, but by matrices that are computed from their size: ranges of those would hold for the network's size alone.
    """
    import onnx

    graph = onnx.load(str(file)).graph
    nodes, stored = graph.node, {weight.name for weight in graph.initializer}
    layers = ("Conv", "Gemm", "MatMul")
    places = [i for i, node in enumerate(nodes) if node.op_type in layers and stored.intersection(node.input)]
    return [node.name for i, node in enumerate(nodes) if not places[0] <= i <= places[-1]]


def _ragged(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return two images whose sides differ, so that torch does not take them for one."""
    return np.ascontiguousarray(np.repeat(np.resize(images[:2], (2, *images.shape[1:])), 2, axis=2)[:, :, 1:])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporters print and log about their own work from the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
