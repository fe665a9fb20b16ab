"""Pictures answered one after the other, by one thread: a network and Pillow share the memory."""

from __future__ import annotations

import base64
import io
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, Field

from cifar_lab.data.pictures import read_picture
from cifar_lab.errors import InputError
from cifar_lab.inference.figures import overlaid
from cifar_lab.inference.prediction import Prediction, activation_maps
from cifar_lab.run.load import NO_NUMBER

if TYPE_CHECKING:
    from cifar_lab.run.load import Run

THREAD = "cifar_lab-answers"  # how its thread's name begins
_MOST_EXAMPLES = 10


class Ranked(BaseModel):
    """A class and its probability."""

    class_: str = Field(alias="class")
    probability: float = Field(ge=0, le=1, description="in [0, 1]; those of all classes sum to 1")


class Answer(BaseModel):
    """What the network says to a picture."""

    file: str | None = Field(description="its name, where one was sent")
    top: list[Ranked] = Field(description="the likeliest classes, the first one first")
    checkpoint: str = Field(description="SHA-256 of the checkpoint that answered, hexadecimal")
    input_png: str | None = Field(
        default=None,
        description="with input=true: the picture as the network sees it, a PNG in base64",
    )
    map_png: str | None = Field(
        default=None,
        description="with explain=true: the same under the map of where it saw the first class "
        "(Grad-CAM), a PNG in base64",
    )
    note: str | None = Field(
        default=None, description="why there is no map, or what is odd about it"
    )


class Example(BaseModel):
    """A test image of the run."""

    label: str
    png: bytes


class Answers:
    """Answers pictures in the order in which they come.

    Args:
        run: as `load_run` gives it.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=THREAD)

    def ask(
        self, content: bytes, name: str | None, *, top: int, show_input: bool, explain: bool
    ) -> Future[Answer]:
        """The answer to come, or InputError: it is no picture, or not one that can be answered.

        Args:
            content: a picture's bytes, in any format that Pillow reads.
            name: of its file; None: it had none.
            top: how many classes to name, at least 1.
            show_input: send back what the network saw.
            explain: send back an activation map.
        """
        return self._thread.submit(self._answer, content, name, top, show_input, explain)

    def close(self) -> None:
        """Drops what waits. What is being answered can't be stopped; its thread ends after it."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _answer(
        self, content: bytes, name: str | None, top: int, show_input: bool, explain: bool
    ) -> Answer:
        run = self.run
        pixels = read_picture(content, run.image_size, name=name or "picture")
        probabilities = run.answers(pixels)[0].numpy()
        if not np.isfinite(probabilities).all():
            raise RuntimeError(NO_NUMBER)
        one = Prediction(name or "picture", probabilities, pixels=pixels)
        answer = Answer(
            file=name,
            top=[
                Ranked.model_validate(
                    {"class": each, "probability": min(p, 1.0)}
                )  # float32's 1+1e-7
                for each, p in one.top(run.classes, top)
            ],
            checkpoint=run.digest,
            input_png=_base64_png(pixels) if show_input else None,
        )
        if explain:
            try:
                (found,) = activation_maps(run, pixels[None], [int(probabilities.argmax())])
                answer.map_png = _base64_png(overlaid(pixels, found))
                if not found.any():
                    answer.note = "nothing in the network's last map speaks for this class"
            except InputError as error:
                answer.note = str(error)
        return answer


def examples_of(run: Run) -> list[Example]:
    """A test image each of the run's first ten classes.

    Raises:
        InputError: its images are not here.
    """
    from cifar_lab.inference.images import own_images

    test = own_images(run).dataset.test
    found = []
    for index, label in enumerate(run.classes[:_MOST_EXAMPLES]):
        places = np.flatnonzero(test.labels == index)
        if len(places):
            found.append(Example(label=label, png=_png(np.asarray(test.images[places[0]]))))
    return found


def base_name(name: str | None) -> str | None:
    """The last part of a file's name as a browser sends it, fit to be shown on a line."""
    last = Path((name or "").replace("\\", "/")).name
    return "".join(c for c in last if c.isprintable())[:100] or None


def _base64_png(pixels: NDArray[np.uint8]) -> str:
    return base64.b64encode(_png(pixels)).decode("ascii")


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """Of pixels (3, H, W)."""
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(content, "PNG")
    return content.getvalue()
