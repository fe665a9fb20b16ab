"""What a machine without a network needs: wheels, and the images in few bytes."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

from cifar_lab.config.compose import compose_group
from cifar_lab.data.dataset import Dataset
from cifar_lab.data.fetch.archive import OFFICIAL
from cifar_lab.data.fetch.locate import Fetching, open_from
from cifar_lab.errors import InputError

IMAGES = "images.tar.xz"
# What an image with torch, lightning and the usual scientific packages lacks.
PACKAGES = (
    *("hydra-core", "omegaconf", "antlr4-python3-runtime", "pydantic", "pydantic-core"),
    *("annotated-types", "typing-inspection", "plotly", "itables"),
)
_PYTHON = "3.12"
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def gather(folder: Path, data: Path | None) -> None:
    """Fills ``folder`` with wheels for CPython 3.12 on Linux, and `IMAGES` from a zip.

    JPEG files of small images are mostly the same tables: together they compress to a third.

    Raises:
        InputError: the data is no zip, or a package can't be had.
    """
    wheels = folder / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    pip = (sys.executable, "-m", "pip")
    for package in PACKAGES:
        wanted = f"{package}=={version(package)}"
        download = [*pip, "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(wheels)]
        download += ["--implementation=cp", f"--python-version={_PYTHON}"]
        build = [*pip, "wheel", "-q", "--no-deps", "-w", str(wheels), wanted]
        platforms = [f"--platform={platform}" for platform in _PLATFORMS]
        for command in ([*download, *platforms, wanted], build):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                break
        else:
            raise InputError(f"{wanted}: {done.stderr.strip().splitlines()[-1:]}")
    if data is not None:
        compress(data, folder / IMAGES)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 2**20:.1f} MiB")


def compress(data: Path, to: Path) -> None:
    """Writes the members of a zip into a .tar.xz, which is half as large; InputError: no zip."""
    try:
        with zipfile.ZipFile(data) as archive, tarfile.open(to, "w:xz", preset=6) as packed:
            for name in archive.namelist():
                content = archive.read(name)
                member = tarfile.TarInfo(name)
                member.size = len(content)
                packed.addfile(member, io.BytesIO(content))
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"--data={data}: can't be packed ({error}); give a zip") from error


def unpacked(data: Path, folder: Path) -> Path:
    """What ``data.root`` takes: the data itself, or the zip that `gather` has compressed."""
    if not data.name.endswith(".tar.xz"):
        return data
    path = folder / "images.zip"
    with tarfile.open(data, "r|xz") as packed, zipfile.ZipFile(path, "w") as archive:
        for member in packed:
            content = packed.extractfile(member)
            if content is not None:
                archive.writestr(member.name, content.read())
    return path


def opened(data: Path, cache: Path) -> Dataset:
    """The images, decoded into the cache where they aren't yet."""
    group = compose_group("data", ["data=cifar10"])
    fetching = {key: group[key] for key in ("sources", "min_rate", "stall_s")}
    return open_from(
        root=str(data),
        cache=str(cache),
        fetching=Fetching(offline=True, **fetching),
        archive=OFFICIAL,
    ).dataset


def write_public(dataset: Dataset, folder: Path) -> None:
    """``cifar10/train.pt`` and ``test.pt`` below the folder, as the airbench scripts read them."""
    import torch

    (folder / "cifar10").mkdir(parents=True, exist_ok=True)
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        images = torch.from_numpy(np.ascontiguousarray(split.images.transpose(0, 2, 3, 1)))
        labels = torch.from_numpy(split.labels.astype(np.int64))
        torch.save(
            {"images": images, "labels": labels, "classes": list(dataset.classes)},
            folder / "cifar10" / f"{name}.pt",
        )
