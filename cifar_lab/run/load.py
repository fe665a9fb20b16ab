"""A finished run, read back from its folder alone: its network, and what its record says.

Nothing is trusted that lies there: the record is typed, a checkpoint is tensors and plain values,
and only parts of a run are called (SECURITY.md).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn

from cifar_lab.config.messages import first_line
from cifar_lab.config.targets import check_targets_of_record, target_nodes
from cifar_lab.data.dataset import CIFAR10_MEAN, CIFAR10_STD
from cifar_lab.data.pictures import read_picture
from cifar_lab.data.synthetic import make_synthetic
from cifar_lab.errors import InputError, listed
from cifar_lab.model.tta import VIEWS, averaged_logits
from cifar_lab.records import checkpoint_file as files
from cifar_lab.records.checkpoint_file import DamagedError
from cifar_lab.records.files import carried_digest, expanded
from cifar_lab.records.record import FILE_NAME, SETTLED, Channels, RunRecord
from cifar_lab.run.networks import build_network, from_the_dataset

_MOST_SIDE = 4096  # of an image, in pixels; a record may say what no memory holds
_NETWORK = "network."  # what the names of its tensors begin with in a checkpoint
# Arguments with which torchvision and timm fetch weights, which the checkpoint replaces anyway
_FETCHING: dict[str, dict[str, Any]] = {
    "torchvision": {"weights": None, "weights_backbone": None, "pretrained": False},
    "timm": {"pretrained": False, "checkpoint_path": "", "pretrained_cfg": None},
}
NO_NUMBER = "the network's answer is no number: its sums are too large"
Picture = Path | str | Image.Image
# One picture, several, or a batch of pixels
Images = Tensor | NDArray[Any] | Picture | Sequence[Picture]


class Normalized(nn.Module):
    """A network with its normalization and test-time augmentation inside.

    Images (N, 3, H, W), float, in [0, 1] -> logits (N, classes), float32 (float64 of a network in
    float64). Images that are 8-bit values divided by 255 become the very numbers that the run's
    test fed to the network.

    Attributes:
        network: normalized images -> logits.
        tta: the views of an image whose logits are averaged (`cifar_lab.model.tta`).
    """

    offset: Tensor
    factor: Tensor

    def __init__(
        self, network: nn.Module, mean: Channels, std: Channels, tta: str = "none"
    ) -> None:
        super().__init__()
        self.network, self.tta = network, tta
        # of values in 0..255, as `cifar_lab.data.augment.Normalization` has them
        dtype = torch.float64 if _in_float64(network.parameters()) else torch.float32
        channels = (torch.tensor(c, dtype=torch.float64).view(-1, 1, 1) for c in (mean, std))
        offset, scale = (255 * c for c in channels)
        self.register_buffer("offset", offset.float().to(dtype))
        self.register_buffer("factor", (1 / scale).float().to(dtype))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, 3, H, W) in [0, 1]."""
        normalized = (images * 255 - self.offset) * self.factor
        return averaged_logits(self.network, normalized, self.tta)[1]


@dataclass(frozen=True, eq=False)
class Run:
    """A run as its folder has it.

    Attributes:
        folder: absolute.
        record: all of run.json.
        model: images (N, 3, H, W), float, in [0, 1] -> logits (N, classes): normalization is
            inside, and test-time augmentation where the run used it. On the CPU, in eval mode, with
            the weights that the run tested (averages where it kept some), uncompiled.
        checkpoint: the file that they are from.
        digest: SHA-256 of that file, 64 hexadecimal digits.
        mean: of each channel, in [0, 1], which is subtracted.
        std: what each channel is divided by then.
        image_size: (H, W) of the images that it was trained on.
        trust: modules beside the package's that its parts may come from.
    """

    folder: Path
    record: RunRecord = field(repr=False)
    model: Normalized = field(repr=False)
    checkpoint: Path
    digest: str
    mean: Channels = field(repr=False)
    std: Channels = field(repr=False)
    image_size: tuple[int, int]
    trust: tuple[str, ...] = field(default=(), repr=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, in the order of the logits."""
        return self.record.data.classes

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration; a copy."""
        return copy.deepcopy(self.record.config or {})

    @property
    def metrics(self) -> dict[str, float | None]:
        """By name, e.g. ``test/acc`` (fractions in [0, 1]); a copy. None: not a number."""
        return dict(self.record.metrics)

    def predict(self, images: Images, *, batch_size: int = 256) -> Tensor:
        """Probabilities of the classes.

        Args:
            images: as `as_batch` takes them.
            batch_size: images at a time.

        Returns:
            (N, classes) float32 on the CPU; every row sums to 1. A single image is N = 1.

        Raises:
            InputError: what `as_batch` refuses, or an answer that is no number.
        """
        found = self.answers(images, batch_size=batch_size)
        if len(wrong := (~found.isfinite().all(1)).nonzero()):
            raise InputError(f"images[{int(wrong[0])}]: {NO_NUMBER}")
        return found

    def answers(self, images: Images, *, batch_size: int = 256) -> Tensor:
        """As `predict`, but with NaN in the rows where the network's answer is no number."""
        batch, model = self.as_batch(images), self.model
        device, dtype = model.offset.device, model.offset.dtype
        parts = []
        with torch.inference_mode():
            for part in batch.split(batch_size):
                pixels = part.to(device)
                floats = pixels.to(dtype) / 255 if pixels.dtype == torch.uint8 else pixels.to(dtype)
                parts.append(model(floats).softmax(1).float().cpu())
        return torch.cat(parts) if parts else torch.empty(0, len(self.classes))

    def as_batch(self, images: Images) -> Tensor:
        """What a person has as (N, 3, H, W), uint8 or float in [0, 1].

        Args:
            images: a tensor or an array (N, 3, H, W) or (N, H, W, 3), or of one image without N,
                uint8 in 0..255 or float in [0, 1], of `image_size`; or a picture (PIL) or a path,
                or a sequence of these, of any size, which `read_picture` reads.

        Raises:
            InputError: another shape, size, type or range, or a picture that can't be read.
        """
        if isinstance(images, str | Path | Image.Image):
            images = [images]
        if isinstance(images, Tensor | np.ndarray):
            return _checked(_as_tensor(images), self.image_size)
        if not isinstance(images, Iterable):
            raise InputError(f"images: can't be a {type(images).__name__}; {_TAKEN}")
        pictures = list(images)
        if pictures and all(isinstance(one, Tensor | np.ndarray) for one in pictures):
            checked = [_checked(_as_tensor(one), self.image_size) for one in pictures]
            return torch.cat(checked)
        pixels = []
        for index, picture in enumerate(pictures):
            if not isinstance(picture, str | Path | Image.Image):
                kind = type(picture).__name__
                raise InputError(f"images[{index}]: can't be a {kind}; {_TAKEN}")
            source = expanded(picture) if isinstance(picture, str) else picture
            pixels.append(read_picture(source, self.image_size, name=f"images[{index}]"))
        if not pixels:
            return torch.empty(0, 3, *self.image_size, dtype=torch.uint8)
        return torch.from_numpy(np.stack(pixels))


def load_run(folder: str | Path, ckpt: str | Path = "best", *, trust: Sequence[str] = ()) -> Run:
    """A run from its folder, wherever that has been moved to.

    Args:
        folder: of the run.
        ckpt: ``best``: the weights that the run tested, of the epoch that was selected, or the last
            where none was. ``last``: those behind its last step. Else a checkpoint file.
        trust: modules of your own that its network may come from (`nets` is `nets.…` too); others
            than those of the libraries are not imported. See SECURITY.md.

    Raises:
        InputError: it is no run, goes on, has no such checkpoint or a damaged one, or one of
            another network; or it names code that isn't trusted.
    """
    path = expanded(folder).absolute()
    if isinstance(trust, str):
        raise InputError(f'trust={trust}: must be a list of modules, as in ["{trust}"]')
    record = read_ended(path)
    _check_classes(path, record)
    config = record.config
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise InputError(f"{path}: its {FILE_NAME} holds no configuration of a network")
    check_targets_of_record({"model": config["model"]}, also=trust)
    tta = str(config.get("tta", "none"))
    if tta not in VIEWS:
        raise InputError(f"{path}: its tta={tta} is none of {', '.join(VIEWS)}")
    file, found = _checkpoint(path, record, ckpt)
    image_size, mean, std = _images_of(path, record)
    network = _network(config["model"], len(record.data.classes), image_size, found, file)
    return Run(
        folder=path,
        record=record,
        model=Normalized(network, mean, std, tta).eval(),
        checkpoint=file,
        digest=carried_digest(file),
        mean=mean,
        std=std,
        image_size=image_size,
        trust=tuple(trust),
    )


def read_ended(path: Path) -> RunRecord:
    """The record of a run that goes on no more; InputError for one that does, and for no run."""
    try:
        if not (path / FILE_NAME).is_file():
            below = sorted(p.parent for p in path.glob(f"*/{FILE_NAME}")) if path.is_dir() else []
            other = f"; there are runs below it, e.g. {below[0]}" if below else ""
            what = f"holds no {FILE_NAME}" if path.is_dir() else "does not exist"
            what = "is no folder" if path.is_file() else what
            raise InputError(f"{path}: {what}; give the folder of a run{other}")
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise InputError(f"{path}: can't be read ({error.strerror})") from error
    try:
        record = RunRecord.read(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: its {FILE_NAME}: {error}") from error
    if record.status == "running":
        raise InputError(
            f"{path}: process {record.pid} on {record.host} is running in it; wait for its end"
        )
    return record


@contextmanager
def settings_of_record(folder: Path) -> Iterator[None]:
    """Raises InputError for whatever the settings of a record make a library raise.

    They are a run's, which has checked them; but a record may come from anybody.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        said = first_line(str(error)) or type(error).__name__
        raise InputError(f"{folder}: its {FILE_NAME} holds settings of no run ({said})") from error


def _check_classes(path: Path, record: RunRecord) -> None:
    if odd := [name for name in record.data.classes if not name.isprintable()]:
        raise InputError(f"{path}: its {FILE_NAME}: data.classes: {odd[0]}: can't be printed")
    if record.data.classes:
        return
    if record.data.digest:
        raise InputError(
            f"{path}: was written by an older version, which did not record the names of its "
            "classes; run it again with this one"
        )
    raise InputError(f"{path}: ended before it had read its images ({record.status})")


def _checkpoint(folder: Path, record: RunRecord, ckpt: str | Path) -> tuple[Path, dict[str, Any]]:
    own = folder / files.FOLDER
    if ckpt == "":
        raise InputError("ckpt: is empty; must be best, last or a file")
    try:
        if ckpt == "best":
            if record.tested is None:
                # the command of a record is not for pasting: it may be a stranger's
                again = f"its own command with hydra.run.dir={folder} continues it, or "
                on = "" if record.status in SETTLED else again
                raise InputError(
                    f"{folder}: is {record.status}, and has tested nothing; {on}take its last "
                    "weights with ckpt=last"
                )
            _check_inside(folder, *(own / name for name in (files.BEST, files.LAST)))
            if record.tested == "best":
                return tested_checkpoint(folder, record)
            ckpt = "last"
        if ckpt == "last":
            path = own / files.LAST
            _check_inside(folder, path)
        else:
            path = expanded(ckpt).absolute()
        if not _exists(path):
            there = sorted(p.name for p in own.glob("*.ckpt"))
            has = f"its checkpoints are {', '.join(there)}" if there else "it holds no checkpoint"
            raise InputError(f"{path}: does not exist; {has}; ckpt must be best, last or a file")
        return path, files.load(path)
    except DamagedError as error:
        raise InputError(f"{folder}: {error}; put a copy back, or give another ckpt") from error


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from error


def tested_checkpoint(folder: Path, record: RunRecord) -> tuple[Path, dict[str, Any]]:
    """The file with the weights that a run tested, and what it holds; DamagedError as `load`.

    Args:
        folder: of the run.
        record: of the run.
    """
    if record.tested == "best" and record.best_step is not None:
        return files.best_checkpoint(folder, record.best_step)
    # an older version did not record the step
    path = folder / files.FOLDER / (files.BEST if record.tested == "best" else files.LAST)
    return path, files.load(path)


def _check_inside(folder: Path, *paths: Path) -> None:
    inside = folder.resolve()
    for path in paths:
        if not path.resolve().is_relative_to(inside):
            raise InputError(f"{path}: leads out of the run folder; give it as ckpt if you want it")


def _images_of(path: Path, record: RunRecord) -> tuple[tuple[int, int], Channels, Channels]:
    """(H, W), mean and deviation of the images that the network knows."""
    data = record.data
    if data.image_size is not None and data.mean is not None and data.std is not None:
        if not all(1 <= side <= _MOST_SIDE for side in data.image_size):
            height, width = data.image_size
            raise InputError(
                f"{path}: its {FILE_NAME}: data.image_size={height}x{width}: must lie in "
                f"1..{_MOST_SIDE}"
            )
        if min(data.std) <= 0:
            raise InputError(f"{path}: its {FILE_NAME}: data.std={min(data.std)}: must be above 0")
        return data.image_size, data.mean, data.std
    # a record of an older version
    node: Mapping[str, Any] = (record.config or {}).get("data") or {}
    size = node.get("image_size", 32)
    if node.get("normalization") == "half":
        return (size, size), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    if data.name == "cifar10":
        return (32, 32), CIFAR10_MEAN, CIFAR10_STD
    if data.name == "synthetic":
        wanted = {key: node[key] for key in ("train_size", "test_size", "data_seed")}
        channels = make_synthetic(**wanted).statistics
        return (32, 32), channels.mean, channels.std
    raise InputError(
        f"{path}: was written by an older version, which did not record the channel means of its "
        "images; run it again with this one"
    )


def network_node(node: dict[str, Any], classes: int, image_size: tuple[int, int]) -> dict[str, Any]:
    """A record's network with the number of classes and the image size written out.

    Hydra's `instantiate` builds it anywhere.
    """
    node = _fetching_nothing(node)
    given = OmegaConf.create({"model": node})
    return node | from_the_dataset(given.model, classes, image_size[1])


def _fetching_nothing(node: dict[str, Any]) -> dict[str, Any]:
    node = copy.deepcopy(node)
    for _, part in target_nodes({"model": node}, ""):
        package = str(part["_target_"]).partition(".")[0]
        part |= {k: v for k, v in _FETCHING.get(package, {}).items() if k in part}
        if package == "timm" and ":" in str(part.get("model_name")):
            raise InputError(
                f"model.model_name={part['model_name']}: a record may name networks of timm's own"
            )
    return node


def _network(
    node: dict[str, Any],
    classes: int,
    image_size: tuple[int, int],
    found: dict[str, Any],
    file: Path,
) -> nn.Module:
    node = _fetching_nothing(node)
    # what it draws at first is replaced; with gradients, weights that are made of others can't be
    # copied
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        network = build_network(OmegaConf.create({"model": node}), classes, image_size[1])
    weights = {
        name.removeprefix(_NETWORK): tensor
        for name, tensor in found["state_dict"].items()
        if str(name).startswith(_NETWORK)
    }
    if _in_float64(t for t in weights.values() if isinstance(t, Tensor)):
        network.double()
    _check_fit(file, network, weights)
    _check_finite(file, network, weights)
    try:
        network.load_state_dict(weights)
    except Exception as error:  # what is no tensor, a sparse one
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"{file}: does not fit this run's network ({reason})") from error
    network.eval()  # which may give nothing, where train is somebody's own
    return network


def _in_float64(tensors: Iterable[Tensor]) -> bool:
    # a single one of them, as a temperature, is the network's own
    return {t.dtype for t in tensors if t.is_floating_point()} == {torch.float64}


def _check_fit(file: Path, network: nn.Module, weights: Mapping[str, Any]) -> None:
    """Raises InputError that names the first tensors that differ."""
    own = network.state_dict()
    differing = [
        *(f"lacks {name}" for name in own if name not in weights),
        *(f"has {name}, which the network has not" for name in weights if name not in own),
        *(
            f"has {name} {_shape(weights[name])}, not {_shape(own[name])}"
            for name in own
            if name in weights and _shape(own[name]) != _shape(weights[name])
        ),
    ]
    if differing:
        raise InputError(
            f"{file}: is of another network than this run's: it {listed(differing, 2)}"
        )


def _check_finite(file: Path, network: nn.Module, weights: Mapping[str, Any]) -> None:
    """Raises InputError for weights that are no numbers, where the network's own are some."""
    for name, own in network.state_dict().items():  # a mask may hold what is infinite
        tensor = weights[name]
        if not isinstance(own, Tensor):  # an extra state, which is the network's to judge
            continue
        if tensor.layout == torch.strided and bool((own.isfinite() & ~tensor.isfinite()).any()):
            raise InputError(
                f"{file}: {name} holds NaN or infinite numbers, and so no answer would be one; "
                "give another ckpt"
            )


def _shape(tensor: Any) -> str:
    if not isinstance(tensor, Tensor):
        return f"({type(tensor).__name__})"
    return "x".join(map(str, tensor.shape)) or "scalar"


_TAKEN = (
    "must be a tensor or array (N, 3, H, W) or (N, H, W, 3), pictures (PIL) or paths to them, one "
    "or several"
)


def _as_tensor(images: Any) -> Tensor:
    if isinstance(images, Tensor):
        return images.detach()
    try:  # a copy: torch knows no turned axes (BGR to RGB), and warns of what it may not write
        return torch.from_numpy(images.astype(images.dtype.newbyteorder("="), order="C"))
    except TypeError as error:
        raise InputError(f"images: have type {images.dtype}; {_TAKEN}") from error


def _checked(images: Tensor, size: tuple[int, int]) -> Tensor:
    given = "x".join(map(str, images.shape))
    if images.ndim == 3:
        images = images[None]
    if images.ndim == 4 and images.shape[1] != 3 and images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] != 3:
        raise InputError(f"images: have shape {given}; {_TAKEN}")
    if tuple(images.shape[2:]) != size:
        raise InputError(
            f"images: are {images.shape[2]}x{images.shape[3]} pixels, and this run's are "
            f"{size[0]}x{size[1]}; resize them, or give pictures or paths, which are resized"
        )
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise InputError(f"images: have type {images.dtype}; must be uint8, or float in 0..1")
    if images.numel():
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise InputError(
                f"images: reach from {low:g} to {high:g}; floats must lie in 0..1 (uint8 in 0..255)"
            )
    return images
