"""A run's network as a file that runs without cifar_lab, held against its checkpoint first.

Every form takes images (N, 3, H, W), float32 in [0, 1], of any N, and gives logits (N, classes):
normalization is inside, and test-time augmentation where the run used it. (Of safetensors both are
in the metadata.)
"""

from __future__ import annotations

import copy
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cifar_lab.data.datamodule import DataModule
from cifar_lab.errors import InputError, reason_of
from cifar_lab.inference.images import feed_of, other_images, own_images
from cifar_lab.inference.quantize import CALIBRATED_ON, quantized, quietly
from cifar_lab.model.tta import views
from cifar_lab.records.digest import run_digest
from cifar_lab.records.environment import package_versions
from cifar_lab.records.files import write_atomically
from cifar_lab.run.load import NO_NUMBER, Normalized, Run, network_node

Format = Literal["onnx", "torch", "safetensors"]
SUFFIXES: dict[str, str] = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}
CHECKED = 256  # test images that a file is held against its checkpoint with
# Logits of other kernels: absolute, and of their own size
ATOL, RTOL = 1e-4, 1e-5
_BATCH = 100
_LATENCY_OF = (1, 64)  # images
_MOST_ROUNDS, _LEAST_ROUNDS = 50, 5
_NEEDED = {"onnx": ("onnx", "onnxruntime", "onnxscript")}

# images -> logits
Answer = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class CheckFailed(RuntimeError):
    """The file doesn't answer as the checkpoint does; it was not kept."""


class Shipped(nn.Module):
    """A run's model that sees all views of an image in one call: its weights stand there once.

    Images (N, 3, H, W), float32 in [0, 1] -> logits (N, classes), float32.
    """

    weights: Tensor

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.model = copy.deepcopy(run.model).float().cpu().eval()
        weights = [weight for weight, _ in views(torch.zeros(1, 3, *run.image_size), run.model.tta)]
        self.register_buffer("weights", torch.tensor(weights).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes)."""
        normalized = (images * 255 - self.model.offset) * self.model.factor
        if self.model.tta == "none":
            logits: Tensor = self.model.network(normalized)
            return logits
        seen = [view for _, view in views(normalized, self.model.tta)]
        each = self.model.network(torch.cat(seen)).unflatten(0, (len(seen), -1))
        mean: Tensor = (self.weights * each).sum(0)
        return mean


@dataclass(frozen=True)
class Latency:
    """How long a call takes, as a share of another's; from rounds in which both took turns.

    Attributes:
        images: of a call.
        median: over the rounds.
        low: a tenth of the rounds had less.
        high: a tenth had more.
        rounds: how many.
    """

    images: int
    median: float
    low: float
    high: float
    rounds: int


@dataclass(frozen=True)
class Exported:
    """A file that was made, checked and put in its place.

    Attributes:
        path: of it.
        size: bytes.
        top1: of how many of the `checked` images the likeliest class is the checkpoint's.
        difference: the largest of their logits from the checkpoint's.
        accuracy: of this file, on the test images.
        images: how many these are.
        before: the accuracy before quantization; None where nothing is quantized.
        latency: compared with the checkpoint's network, or of int8 with the same file in float32.
        facts: what the file's metadata say.
        notes: what a reader of the numbers has to know, a line each.
    """

    path: Path
    size: int
    checked: int
    top1: int
    difference: float
    accuracy: float
    images: int
    before: float | None
    latency: tuple[Latency, ...]
    facts: dict[str, Any]
    notes: tuple[str, ...] = ()


def check_installed(form: str) -> None:
    """Raises InputError where a package is missing that a format needs."""
    missing = [name for name in _NEEDED.get(form, ()) if find_spec(name) is None]
    if missing:
        raise InputError(
            f"--format {form}: needs {', '.join(missing)}; pip install 'cifar-lab[onnx]'"
        )


def images_for(run: Run, root: str | None) -> DataModule:
    """What a file is checked and calibrated with: the run's own images, or others of its classes.

    Raises:
        InputError: they are not here.
    """
    if root is None:
        return own_images(run)
    data = other_images(run, root)
    if run.record.data.holds(data.dataset.digest):
        return feed_of(run, data.dataset, hold_out=True)
    return data


def export(
    run: Run,
    out: Path,
    data: DataModule,
    *,
    form: Format = "onnx",
    quantize: Literal["int8"] | None = None,
    seconds: float = 2.0,
    done: Callable[[str], object] = lambda step: None,
) -> Exported:
    """Makes the file, holds it against the checkpoint, and puts it in its place at once.

    Args:
        run: as `load_run` gives it.
        out: the file; one that is there is replaced whole.
        data: as `images_for` gives it.
        form: ``onnx``; ``torch``: for `torch.export.load`; ``safetensors``: the weights alone.
        quantize: ``int8``, of ONNX: calibrated on held-out images, or training images where none
            are held out; never on test images.
        seconds: that latency is measured for, for each number of images; 0: not at all.
        done: called with the name of each step when it begins.

    Raises:
        InputError: a package is missing, or the file can't be written.
        CheckFailed: the network can't be had in this form, or answers otherwise than it should.
    """
    check_installed(form)
    images = _floats(_spread(data.dataset.test.images, CHECKED))
    expected, found = _by_torch(run, images), np.empty(0, np.float32)
    if not np.isfinite(expected).all():
        raise InputError(f"{run.checkpoint}: {NO_NUMBER}")
    done("exporting")
    facts = _facts(run, data, form, quantize)
    made = _FORMS[form](run)
    before: Answer | None = None
    if quantize is not None:
        done("quantizing")
        said, calibration = _for_calibration(data, CALIBRATED_ON)
        facts["calibrated_on"] = f"{len(calibration)} {said} images"
        before, made = made.answer, _of_onnx(_quantized(made, calibration))
    done("testing")
    facts["accuracy"], before_accuracy = _accuracy(made.answer, data), None
    if before is not None:
        facts["accuracy_before"] = before_accuracy = _accuracy(before, data)
    latency: tuple[Latency, ...] = ()
    if seconds and form != "safetensors":
        done("measuring latency")
        compared = partial(_by_torch, run) if before is None else before
        latency = _latencies(compared, made.answer, data, seconds)
        facts["latency"] = {
            "of": "the checkpoint in torch" if before is None else "float32",
            "threads": torch.get_num_threads(),
            "ratios": [vars(one) for one in latency],
        }
    done("checking")

    def check(path: Path) -> None:
        nonlocal found
        found = made.read(path, images)
        if quantize is None:
            _check(found, expected)

    try:
        out.parent.mkdir(exist_ok=True)
        write_atomically(out, made.content(properties(facts)), check=check)
        size = out.stat().st_size
    except OSError as error:
        raise InputError(
            f"--out {out}: can't be written ({error.strerror or error}); give another file"
        ) from error
    double = run.model.offset.dtype == torch.float64 and form != "safetensors"
    notes = ("the run computed in float64, this file computes in float32",) if double else ()
    return Exported(
        path=out,
        size=size,
        checked=len(images),
        top1=int((found.argmax(1) == expected.argmax(1)).sum()),
        difference=float(np.abs(found - expected).max()),
        accuracy=facts["accuracy"],
        images=len(data.dataset.test),
        before=before_accuracy,
        latency=latency,
        facts=facts,
        notes=notes,
    )


# --- what the file says of itself -----------------------------------------------------------------


def _facts(run: Run, data: DataModule, form: str, quantize: str | None) -> dict[str, Any]:
    """What stands in the metadata; nothing of this machine."""
    height, width = run.image_size
    versions = package_versions()
    record, test = run.record, data.dataset
    return {
        "format": form,
        "quantized": quantize,
        "input": f"images: float32 (N, 3, {height}, {width}), RGB in [0, 1] (8-bit values / 255)",
        "output": "logits: float32 (N, classes)",
        "classes": list(run.classes),
        "tta": run.model.tta,
        "checkpoint_sha256": run.digest,
        "run_digest": run_digest(record.config_digest, record.data.digest),
        "tested_on": f"{len(test.test.images)} test images of {test.name} ({test.digest[:12]})",
        "versions": {k: versions[k] for k in ("cifar-lab", "torch") if k in versions},
    }


def properties(facts: Mapping[str, Any]) -> dict[str, str]:
    """Metadata as text: strings as they are, everything else as JSON."""
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}


# --- the forms ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Made:
    """A network in another form.

    Attributes:
        answer: what it says to images, in this process.
        content: metadata -> the bytes of the file.
        read: what a file says to images that has been written.
    """

    answer: Answer
    content: Callable[[Mapping[str, str]], bytes]
    read: Callable[[Path, NDArray[np.float32]], NDArray[np.float32]]


def _program(run: Run) -> torch.export.ExportedProgram:
    example = torch.zeros(2, 3, *run.image_size)
    batch = {"images": {0: torch.export.Dim("batch")}}
    try:
        with quietly(), torch.no_grad():
            program = torch.export.export(Shipped(run).eval(), (example,), dynamic_shapes=batch)
    except Exception as error:  # whatever a person's own network does that can't be traced
        raise CheckFailed(f"this network can't be exported: {reason_of(error)}") from error
    for node in program.graph.nodes:  # paths of this machine, and lines of its code
        node.meta.pop("stack_trace", None)
    return program


def _as_onnx(run: Run) -> _Made:
    program = _program(run)
    try:
        with quietly():
            made = torch.onnx.export(
                program,
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                verbose=False,
            )
    except Exception as error:
        raise CheckFailed(f"this network can't be had as ONNX: {reason_of(error)}") from error
    assert made is not None
    model = made.model_proto
    graph = model.graph
    for part in (*graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]  # of the exporter: names and lines of this machine's code
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return _of_onnx(model.SerializeToString())


def _of_onnx(model: bytes) -> _Made:
    def content(properties: Mapping[str, str]) -> bytes:
        import onnx

        loaded = onnx.load_from_string(model)
        onnx.helper.set_model_props(loaded, dict(properties))
        return bytes(loaded.SerializeToString())

    return _Made(
        answer=_of_session(model),
        content=content,
        read=lambda path, images: _of_session(path.read_bytes())(images),
    )


def _of_session(model: bytes) -> Answer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run(["logits"], {"images": images})[0], np.float32)


def _as_program(run: Run) -> _Made:
    program = _program(run)
    module = program.module()

    def answer(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            return np.asarray(module(torch.from_numpy(images)).numpy(), np.float32)

    def content(properties: Mapping[str, str]) -> bytes:
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={"metadata.json": json.dumps(properties)})
        return buffer.getvalue()

    return _Made(answer=answer, content=content, read=_read_elsewhere)


def _quantized(made: _Made, images: NDArray[np.float32]) -> bytes:
    try:
        return quantized(made.content({}), images)
    except Exception as error:  # of a network that it can't take
        raise CheckFailed(f"this network can't be had in 8 bits: {reason_of(error)}") from error


# Run by another process, in which nothing of cifar_lab is.
_ELSEWHERE = """
import sys
import numpy, torch
program, images, logits = sys.argv[1:]
with open(program, "rb") as file:
    module = torch.export.load(file).module()
with torch.no_grad():
    numpy.save(logits, module(torch.from_numpy(numpy.load(images))).numpy())
assert "cifar_lab" not in sys.modules
"""


def _read_elsewhere(path: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    with tempfile.TemporaryDirectory() as folder:
        given, answered = Path(folder) / "images.npy", Path(folder) / "logits.npy"
        np.save(given, images)
        done = subprocess.run(
            [sys.executable, "-c", _ELSEWHERE, str(path.absolute()), str(given), str(answered)],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            last = (done.stderr.strip() or "no reason").splitlines()[-1]
            raise CheckFailed(f"the file can't be loaded in another process: {last}")
        return np.asarray(np.load(answered), np.float32)


def _as_weights(run: Run) -> _Made:
    from safetensors.torch import save

    state = run.model.network.state_dict()
    if extra := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise InputError(f"{extra[0]}: is no tensor, and the file holds tensors alone; use onnx")
    tensors = {name: t.contiguous() for name, t in state.items()}
    node = network_node(run.config["model"], len(run.classes), run.image_size)
    rebuilt = {
        "model": json.dumps(node),
        "mean": json.dumps(run.mean),
        "std": json.dumps(run.std),
        "dtype": str(run.model.offset.dtype).removeprefix("torch."),
        "rebuild": (
            "network = hydra.utils.instantiate(json.loads(model)).to(getattr(torch, dtype)); "
            "network.load_state_dict(safetensors.torch.load_file(FILE)); "
            "logits = network.eval()((images - mean) / std), averaged over the views of tta"
        ),
    }

    def content(properties: Mapping[str, str]) -> bytes:
        try:
            return save(tensors, metadata={**properties, **rebuilt})
        except (ValueError, RuntimeError) as error:  # of tensors that share memory
            raise CheckFailed(f"can't be had as safetensors: {reason_of(error)}") from error

    def read(path: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
        return _rebuilt(path, run, images)

    return _Made(
        answer=partial(_by_torch, run),
        content=content,
        read=read,
    )


def _rebuilt(path: Path, run: Run, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """As the metadata say."""
    from hydra.utils import instantiate
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(path, framework="pt") as opened:
        its = opened.metadata()
    with torch.random.fork_rng(devices=[]):  # what it draws at first is replaced
        network = instantiate(json.loads(its["model"]), _convert_="all")
    network = network.to(getattr(torch, its["dtype"]))
    network.load_state_dict(load_file(path))
    model = Normalized(network, json.loads(its["mean"]), json.loads(its["std"]), its["tta"])
    return _by_torch(replace(run, model=model.eval()), images)


_FORMS: dict[str, Callable[[Run], _Made]] = {
    "onnx": _as_onnx,
    "torch": _as_program,
    "safetensors": _as_weights,
}


# --- what it is held against ----------------------------------------------------------------------


def _by_torch(run: Run, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """The checkpoint's logits, as `load_run` gives them."""
    with torch.inference_mode():
        given = torch.from_numpy(images).to(run.model.offset.dtype)
        parts = [run.model(part) for part in given.split(_BATCH)]
    return np.asarray(torch.cat(parts).float().numpy(), np.float32)


def _check(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    other = int((found.argmax(1) != expected.argmax(1)).sum())
    apart = np.abs(found - expected)
    if not bool((apart <= ATOL + RTOL * np.abs(expected)).all()) or other:
        raise CheckFailed(
            f"its logits differ from the checkpoint's by up to {apart.max():.3g} (at most {ATOL:g} "
            f"is taken), and {other} of {len(found)} test images get another class"
        )


def _for_calibration(data: DataModule, count: int) -> tuple[str, NDArray[np.float32]]:
    rows, said = data.val_indices, "held-out"
    if not len(rows):
        rows, said = data.train_indices, "training"
    return said, _floats(data.dataset.train.images[_spread(rows, count)])


def _accuracy(answer: Answer, data: DataModule) -> float:
    test, right = data.dataset.test, 0
    for start in range(0, len(test), _BATCH):
        part = slice(start, start + _BATCH)
        said = answer(_floats(test.images[part])).argmax(1)
        right += int((said == test.labels[part]).sum())
    return right / len(test)


def _latencies(one: Answer, other: Answer, data: DataModule, seconds: float) -> tuple[Latency, ...]:
    stored, found = data.dataset.test.images, []
    for count in _LATENCY_OF:
        images = _floats(stored[np.arange(count) % len(stored)])
        for answer in (one, other):  # what is made at a first call
            answer(images)
        ratios: list[float] = []
        until = time.perf_counter() + seconds
        while len(ratios) < _MOST_ROUNDS and (
            len(ratios) < _LEAST_ROUNDS or time.perf_counter() < until
        ):
            times = []
            for answer in (one, other):
                begun = time.perf_counter()
                answer(images)
                times.append(time.perf_counter() - begun)
            ratios.append(times[1] / times[0])
        low, median, high = (float(q) for q in np.quantile(ratios, (0.1, 0.5, 0.9)))
        found.append(Latency(count, median, low, high, len(ratios)))
    return tuple(found)


def _spread(rows: NDArray[Any], count: int) -> NDArray[Any]:
    """So many of them, at equal distances: class folders are sorted by class."""
    places = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(np.int64)
    return rows[places]


def _floats(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(images, np.float32) / np.float32(255)
