"""What a person sees in TensorBoard, read from its pages: a real sweep and a continued run."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cifar_lab.config.port import listen, port_of
from cifar_lab.data.dataset import CLASSES
from cifar_lab.training.loggers.tensorboard import RESULTS
from tests.conftest import TINY, environment, merged, record_of
from tests.support.served import served

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]

RUN = (
    *[argument for argument in TINY if not argument.startswith(("callbacks", "monitors"))],
    "data.train_size=2000",
    "trainer.max_epochs=3",
    "threads=1",
)
# sgd has no betas, adamw no momentum: no column may be hidden because one of them lacks it
SWEPT = ("optimizer=sgd,adamw", "optimizer.lr=0.003,0.01", "hydra.sweep.dir=outputs/sweeps/depth")
JOBS = ["adamw-lr0.003", "adamw-lr0.01", "sgd-lr0.003", "sgd-lr0.01"]
# polymer's elements keep their text in shadow trees, and stylesheets too
DEEP_TEXT = """() => {
    const read = (node) => [...(node.shadowRoot ? [node.shadowRoot] : []), ...node.childNodes]
        .map(child => child.nodeType === Node.TEXT_NODE ? child.textContent
            : ['STYLE', 'SCRIPT', 'TEMPLATE', 'DOM-MODULE'].includes(child.nodeName) ? ''
            : read(child)).join('\\n');
    return read(document.body).replace(/\\s*\\n\\s*/g, '\\n');
}"""


def command(folder: Path, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "cifar_lab", *merged(*arguments)],
        env=environment(XDG_CACHE_HOME=str(folder / "cache")),
        cwd=folder,
        check=True,
        capture_output=True,
        timeout=240,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The records of a sweep of four jobs and of a run that was continued, by short name."""
    folder = tmp_path_factory.mktemp("lab")
    command(folder, "-m", *RUN, *SWEPT, "sweep.slots=1")
    for epochs in (2, 3):
        longer = (f"trainer.max_epochs={epochs}", "scheduler=constant")
        command(folder, *RUN, *longer, "seed=7", "hydra.run.dir=outputs/longer")
    found = {
        f"depth/{re.sub('-[0-9a-f]{8}$', '', path.name)}": record_of(path)
        for path in (folder / "outputs" / "sweeps" / "depth").glob("*-*/")
    }
    assert sorted(found) == [f"depth/{job}" for job in JOBS]
    return {"root": {"path": str(folder / "outputs")}, **found}


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("CIFAR_LAB_ARTEFACTS") or tmp_path_factory.mktemp("artefacts"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def sweep(runs: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The dashboard of the sweep's own folder."""
    with served("dashboard", Path(runs["root"]["path"]) / "sweeps" / "depth") as (_, address):
        yield address


@pytest.fixture(scope="module")
def everything(runs: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The dashboard of all runs."""
    with served("dashboard", Path(runs["root"]["path"])) as (_, address):
        yield address


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1400, "height": 900})
        browser.close()


def opened(page: Any, address: str, *wanted: str) -> str:
    """All text of a tab, once it holds what is wanted."""
    page.goto("about:blank")
    page.goto(address)
    wait = f"wanted => wanted.every(text => ({DEEP_TEXT})().includes(text))"
    try:
        page.wait_for_function(wait, arg=list(wanted), timeout=30_000)
    except playwright.TimeoutError:
        pytest.fail(f"{wanted} did not all appear in: {page.evaluate(DEEP_TEXT)}")
    page.wait_for_timeout(500)  # charts are still being drawn
    return str(page.evaluate(DEEP_TEXT))


def test_custom_scalars_opens_on_the_curves_that_matter(
    page: Any, sweep: str, artefacts: Path
) -> None:
    titles = (
        "accuracy (fraction of the images)",
        "loss",
        "learning rate",
        "training speed (images/s)",
        "gradient norm (last step of the epoch)",
    )
    text = opened(page, f"{sweep}#custom_scalars", *titles, *JOBS, "Matches (8)", "Matches (4)")
    page.screenshot(path=artefacts / "custom_scalars.png")
    lines = text.splitlines()
    # four runs, one layout: no chart is there twice
    assert [lines.count(title) for title in titles] == [1] * 5
    # train and val of four runs in a chart; one curve of each in the others
    assert [line for line in lines if line.startswith("Matches")] == [
        *["Matches (8)"] * 2,
        *["Matches (4)"] * 3,
    ]


def test_runs_have_short_names_that_say_what_was_varied(page: Any, everything: str) -> None:
    text = opened(page, f"{everything}#custom_scalars", "depth/sgd-lr0.01")
    shown = {line.strip() for line in text.splitlines()}
    assert {f"sweeps depth/{job}" for job in JOBS} <= shown
    assert any(name.startswith("longer ") for name in shown)


def test_a_continued_run_shows_its_curves_once(page: Any, everything: str, artefacts: Path) -> None:
    text = opened(page, f"{everything}#custom_scalars", "Matches (10)")
    page.screenshot(path=artefacts / "custom_scalars_all.png")
    assert text.splitlines().count("learning rate") == 1


def test_hparams_shows_final_values_of_every_run_and_no_minus_one(
    page: Any, sweep: str, runs: dict[str, dict[str, Any]], artefacts: Path
) -> None:
    text = opened(page, f"{sweep}#hparams", "optimizer.betas", *JOBS, "final/val/acc")
    page.screenshot(path=artefacts / "hparams.png")
    cells = set(text.splitlines())
    # the columns of either optimizer
    assert {"optimizer", "optimizer.lr", "optimizer.betas", "optimizer.momentum"} <= cells
    for job in JOBS:
        record = runs[f"depth/{job}"]
        final = {**record["metrics"], "parameters": record["parameters"]}
        for name in RESULTS:
            assert shown(final[name]) in cells, (job, name)
    assert not {cell for cell in cells if re.fullmatch(r"-1(\.0*)?", cell)}


def shown(value: float) -> str:
    """As the HParams table writes a float32: toPrecision(5) of JavaScript."""
    exact = float(np.float32(value))
    if exact >= 1e5:
        mantissa, _, exponent = f"{exact:.4e}".partition("e+")
        return f"{mantissa}e+{int(exponent)}"
    return f"{exact:#.5g}".rstrip(".")


def test_images_holds_pictures_of_the_test_and_the_first_filters(
    page: Any, sweep: str, artefacts: Path
) -> None:
    tags = ("model/first_layer_filters", "test/confusion_matrix")
    opened(page, f"{sweep}#images", *tags)
    page.wait_for_function(
        """() => {
            const all = (node) => [...node.querySelectorAll('*')].flatMap(
                e => [e, ...(e.shadowRoot ? all(e.shadowRoot) : [])]);
            const images = all(document).filter(e => e.nodeName === 'IMG');
            return images.length > 7 && images.every(i => i.complete && i.naturalWidth > 100);
        }""",
        timeout=30_000,
    )
    page.screenshot(path=artefacts / "images.png")
    text = page.evaluate(DEEP_TEXT)
    for tag in (*tags, "test/per_class_accuracy", "test/worst_mistakes"):
        assert text.splitlines().count(tag) >= 1, tag


def test_pr_curves_are_named_by_their_class(page: Any, sweep: str, artefacts: Path) -> None:
    opened(page, f"{sweep}#pr_curves", *[f"precision_recall/{name}" for name in CLASSES])
    page.screenshot(path=artefacts / "pr_curves.png")


def test_the_configuration_is_readable_text(page: Any, sweep: str, artefacts: Path) -> None:
    text = opened(page, f"{sweep}#text", "configuration/text_summary", "lr: 0.003")
    page.screenshot(path=artefacts / "text.png")
    assert "optimizer:" in text
    assert "```" not in text


def test_the_graph_shows_the_network(page: Any, sweep: str, artefacts: Path) -> None:
    opened(page, f"{sweep}#graphs", "Main Graph", "ResNet", "input", "output")
    page.screenshot(path=artefacts / "graph.png")


def test_plain_tensorboard_works_too(page: Any, runs: dict[str, dict[str, Any]]) -> None:
    """Without short names, and with the reader that is written in Python."""
    with listen(None, first=6006) as free:
        port = str(port_of(free))
    options = ("--logdir", runs["root"]["path"], "--host", "127.0.0.1", "--port", port)
    process = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", *options, "--load_fast=false"],
        env=environment(),
        stderr=subprocess.DEVNULL,
    )
    try:
        address = f"http://127.0.0.1:{port}/"
        wait_for(int(port))
        opened(page, f"{address}#custom_scalars", "Matches (10)", "longer/tensorboard")
        layout = page.request.get(f"{address}data/plugin/custom_scalars/layout").json()
        assert [len(category["chart"]) for category in layout["category"]] == [5]
    finally:
        process.terminate()
        process.wait(20)


def wait_for(port: int) -> None:
    """Until somebody listens on the port."""
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail(f"nobody listens on port {port}")
