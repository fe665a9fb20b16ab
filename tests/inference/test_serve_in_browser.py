"""The page of `cifar_lab.serve` in a real browser, and other pages that would like to use it."""

from __future__ import annotations

import http.server
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_lab import load_run
from cifar_lab.config.port import HOST
from cifar_lab.data.synthetic import make_synthetic
from cifar_lab.inference.serving.answers import examples_of
from cifar_lab.run.load import Run
from tests.support.serving import png, serving_here

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]

PIXELS = make_synthetic(train_size=20, test_size=12, data_seed=1).test.images
MARKUP = "<img src=x onerror=alert(1)>.png"
WIDE, PHONE = (1400, 900), (400, 850)
Open = Callable[..., Any]
# a file in the hands of a person, as a drop and the clipboard carry it
HAND_OVER = """([kind, files, text]) => {
    const data = new DataTransfer();
    for (const [name, bytes] of files) data.items.add(new File([new Uint8Array(bytes)], name));
    if (text) data.setData('text/plain', text);
    const given = kind === 'paste'
        ? new ClipboardEvent('paste', { clipboardData: data, bubbles: true, cancelable: true })
        : new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true });
    document.querySelector('h1').dispatchEvent(given);
}"""


class Counting(torch.nn.Module):
    """Knows how often it was asked."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.times = network, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.times += 1
        logits: torch.Tensor = self.network(images)
        return logits


@pytest.fixture(scope="module")
def run(finished: Path) -> Run:
    found = load_run(finished)
    found.model.network = Counting(found.model.network)
    return found


@pytest.fixture(scope="module")
def port(run: Run) -> Iterator[int]:
    with serving_here(run, examples=examples_of(run)) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # as if somebody's name server had rebound a name of theirs to this machine
    rebound = "--host-resolver-rules=MAP evil.example 127.0.0.1"
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", rebound])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any, port: int) -> Iterator[Open]:
    """Opens the page, which must stay silent and ask nobody else."""
    faults: list[str] = []
    contexts = []

    def open_page(
        path: str = "/", size: tuple[int, int] = WIDE, scheme: str = "light", port: int = port
    ) -> Any:
        viewport = {"width": size[0], "height": size[1]}
        context = browser.new_context(viewport=viewport, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))

        def hear(message: Any) -> None:
            # Chromium's own word on a reply that is an error
            if not message.text.startswith("Failed to load resource"):
                faults.append(f"{message.type}: {message.text}")

        def see(request: Any) -> None:
            if not request.url.startswith((f"http://{HOST}:{port}/", "data:")):
                faults.append(f"request: {request.url}")

        page.on("console", hear)
        page.on("request", see)
        page.goto(f"http://{HOST}:{port}{path}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("CIFAR_LAB_ARTEFACTS") or tmp_path_factory.mktemp("artefacts"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def hand_over(page: Any, kind: str, *files: tuple[str, bytes], text: str = "") -> None:
    page.evaluate(HAND_OVER, [kind, [[name, list(content)] for name, content in files], text])


def shown(page: Any, run: Run, index: int) -> None:
    """The answer to a picture is there, as the model gives it."""
    row = run.predict(PIXELS[index])[0]
    expected = sorted(zip(row.tolist(), run.classes, strict=True), reverse=True)[:5]
    heading = page.get_by_role("heading", name=f"{expected[0][1]}, {100 * expected[0][0]:.1f} %")
    expect(heading).to_be_visible()
    items = page.get_by_role("list", name="The likeliest classes").get_by_role("listitem")
    expect(items).to_have_count(5)
    assert items.all_inner_texts() == [f"{name}\n{100 * p:.1f} %" for p, name in expected]
    tracks = page.locator("#top .track")
    for place, (p, _) in enumerate(expected):
        track, bar = (
            tracks.nth(place).bounding_box(),
            page.locator(".bar").nth(place).bounding_box(),
        )
        assert bar["width"] == pytest.approx(p * (track["width"] - 2), abs=2)
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.get_by_role("status")).to_have_text(
        f"{expected[0][1]}, {100 * expected[0][0]:.1f} %"
    )


def seen(page: Any, figure: str) -> list[list[int]]:
    """The pixels of a picture of the page: [[red, green, blue], ...]."""
    found: list[list[int]] = page.evaluate(
        """async (figure) => {
            const image = document.querySelector(`#${figure} img`);
            await image.decode();
            const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
            const context = canvas.getContext('2d');
            context.drawImage(image, 0, 0);
            const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
            const pixel = (_, i) => [...data.slice(4 * i, 4 * i + 3)];
            return Array.from({ length: data.length / 4 }, pixel);
        }""",
        figure,
    )
    return found


def test_a_picture_is_chosen_dropped_and_pasted(opened: Open, run: Run) -> None:
    page = opened()
    one = {"name": "a.png", "mimeType": "image/png", "buffer": png(PIXELS[0])}
    page.get_by_label("Choose a picture").set_input_files(one)
    shown(page, run, 0)
    expect(page.locator("#asked")).to_have_text("a.png")
    for index, kind in ((1, "drop"), (2, "paste")):
        hand_over(page, kind, ("x.png", png(PIXELS[index])))
        shown(page, run, index)
        # what the network sees, enlarged without smoothing
        assert seen(page, "input") == PIXELS[index].reshape(3, -1).T.tolist()
        assert len(seen(page, "map")) == 32 * 32
        image = page.get_by_role("img", name="x.png as the network sees it")
        assert image.evaluate("i => getComputedStyle(i).imageRendering") == "pixelated"
        assert image.bounding_box()["width"] > 150
        expect(page.get_by_role("img", name="where it saw")).to_be_visible()


def test_an_example_is_asked_with_the_keyboard_alone(opened: Open, run: Run) -> None:
    page = opened()
    names = []
    for _ in range(1 + len(run.classes)):
        page.keyboard.press("Tab")
        focused = "document.activeElement"
        names.append(page.evaluate(f"{focused}.labels?.[0]?.textContent || {focused}.title"))
        outline = "e => getComputedStyle(e).outlineStyle"
        marked = page.locator(".button" if len(names) == 1 else "button:focus")
        assert marked.evaluate(outline) != "none"
    assert names == ["Choose a picture", *run.classes]
    page.keyboard.press("Enter")
    expect(page.locator("#asked")).to_have_text(f"a test image, labelled {run.classes[-1]}")
    expect(page.get_by_role("status")).to_contain_text(" %")
    for name in run.classes:
        expect(page.get_by_role("button", name=name, exact=True)).to_have_count(1)


@pytest.mark.parametrize(
    ("kind", "files", "text", "said"),
    [
        (
            "drop",
            [("cat.png", b"a text")],
            "",
            "cat.png: is no readable picture; must be PNG, JPEG",
        ),
        ("paste", [("cat.png", b"")], "", "cat.png: is empty"),
        (
            "drop",
            [("<img src=x onerror=alert(1)>.png", b"x")],
            "",
            "<img src=x onerror=alert(1)>.png: ",
        ),
        (
            "drop",
            [("a.png", b"x"), ("b.png", b"x")],
            "",
            "2 files were dropped: give one at a time",
        ),
        ("drop", [], "https://evil.example/cat.png", "what was dropped is no picture; if it is an"),
        ("paste", [], "some words", "what was pasted is no picture"),
    ],
)
def test_what_is_no_picture_is_said_in_the_page(
    opened: Open, run: Run, kind: str, files: list[tuple[str, bytes]], text: str, said: str
) -> None:
    page = opened()
    hand_over(page, "drop", ("good.png", png(PIXELS[0])))
    shown(page, run, 0)
    hand_over(page, kind, *files, text=text)
    expect(page.get_by_role("alert")).to_contain_text(said)
    expect(page.locator("#answer")).to_be_hidden()  # the old answer is of another picture
    hand_over(page, "drop", ("good.png", png(PIXELS[1])))
    shown(page, run, 1)


def test_what_is_too_large_is_not_sent(opened: Open) -> None:
    page = opened()
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    page.evaluate(
        """() => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(100e6)], 'big.png'));
            const given = new DragEvent('drop', { dataTransfer: data, bubbles: true });
            document.body.dispatchEvent(given);
        }"""
    )
    expect(page.get_by_role("alert")).to_have_text("big.png: has more than 20 MiB")
    assert sent == []


def test_the_last_picture_counts(opened: Open, run: Run) -> None:
    page = opened()
    for index in (3, 4, 5, 6):
        hand_over(page, "drop", (f"{index}.png", png(PIXELS[index])))
    shown(page, run, 6)
    expect(page.locator("#asked")).to_have_text("6.png")
    page.wait_for_timeout(300)
    expect(page.locator("#asked")).to_have_text("6.png")


def test_a_server_that_is_gone_or_another_ones(
    opened: Open, run: Run, another: Path, browser: Any
) -> None:
    with serving_here(run) as port:
        page = opened(port=port)
        expect(page.locator("#examples")).to_have_count(0)
    hand_over(page, "drop", ("a.png", png(PIXELS[0])))
    expect(page.get_by_role("alert")).to_contain_text(f"no answer from {HOST}:{port}: is python -m")
    page = opened()
    page.evaluate("document.body.dataset.checkpoint = 'of the run that was served before'")
    hand_over(page, "drop", ("a.png", png(PIXELS[0])))
    expect(page.get_by_role("alert")).to_have_text(
        "another run is served here now: reload the page"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE])
@pytest.mark.parametrize("path", ["/", "/docs"])
def test_it_fits(
    opened: Open, run: Run, size: tuple[int, int], scheme: str, path: str, artefacts: Path
) -> None:
    page = opened(path, size, scheme)
    if path == "/":
        page.get_by_role("button", name=run.classes[3], exact=True).click()
        expect(page.locator("#top li")).to_have_count(5)
    root = "document.documentElement"
    assert page.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")
    name = f"serve{path.replace('/', '-').rstrip('-')}-{size[0]}-{scheme}.png"
    page.screenshot(path=artefacts / name, full_page=size == PHONE)
    # text stands out from what is behind it (WCAG 2.2: 4.5 to 1)
    low = page.evaluate(
        """() => {
            const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
            const linear = (v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
            const light = (c) => [.2126, .7152, .0722]
                .reduce((sum, weight, i) => sum + weight * linear(c[i] / 255), 0);
            const behind = (e) => {
                for (; e; e = e.parentElement) {
                    const c = rgb(getComputedStyle(e).backgroundColor);
                    if (c.length === 3 || c[3] > 0) return c;
                }
            };
            return [...document.querySelectorAll('body *')].filter((e) => e.checkVisibility()
                && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()))
                .map((e) => {
                    const both = [rgb(getComputedStyle(e).color), behind(e)].map(light);
                    const [a, b] = both.sort((x, y) => y - x);
                    return [(a + .05) / (b + .05), e.outerHTML.slice(0, 80)];
                }).filter(([ratio]) => ratio < 4.5);
        }"""
    )
    assert low == []


# --- pages of others ---------------------------------------------------------------------------


class EvilHandler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<title>evil</title>")

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def evil_server() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer((HOST, 0), EvilHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


# all that a page can try without being asked; what it learns
TRY_ALL = """async ([target, bytes]) => {
    const learned = {}, picture = new Blob([new Uint8Array(bytes)], { type: 'image/png' });
    const form = new FormData();
    form.append('file', picture, 'a.png');
    const asking = async (name, path, options) => {
        try {
            const reply = await fetch(target + path, options);
            learned[name] = reply.type === 'opaque' ? 'opaque' : await reply.text();
        } catch (error) { learned[name] = 'nothing'; }
    };
    for (const mode of ['cors', 'no-cors']) {
        await asking(`form ${mode}`, '/predict', { method: 'POST', body: form, mode });
        await asking(`text ${mode}`, '/predict', { method: 'POST', body: 'x', mode });
        await asking(`page ${mode}`, '/', { mode });
        await asking(`credentials ${mode}`, '/openapi.json', { mode, credentials: 'include' });
    }
    const headers = { 'X-A': 'b' };
    await asking('preflight', '/predict', { method: 'POST', body: picture, headers });
    learned.beacon = navigator.sendBeacon(target + '/predict', form) ? 'sent' : 'not sent';
    const element = (tag, attributes, ready) => new Promise((done) => {
        const made = Object.assign(document.createElement(tag), attributes);
        made.onload = () => done(ready(made));
        made.onerror = () => done('nothing');
        document.body.append(made);
        setTimeout(() => done('nothing'), 3000);
    });
    const example = { src: target + '/examples/0.png' };
    learned.img = await element('img', example, (image) => `width ${image.width}`);
    learned.script = await element('script', { src: target + '/page.js' }, () => 'ran');
    const style = { rel: 'stylesheet', href: target + '/page.css' };
    learned.style = await element('link', style, () => 'read');
    learned.frame = await element('iframe', { src: target + '/' }, (f) => {
        try { return f.contentDocument ? f.contentDocument.title || 'nothing' : 'nothing'; }
        catch (error) { return 'nothing'; }
    });
    return learned;
}"""


@pytest.mark.parametrize("host", [HOST, "localhost", "evil.example"])
def test_a_page_of_another_origin_learns_nothing_and_makes_no_work(
    browser: Any, run: Run, port: int, host: str
) -> None:
    network = run.model.network
    assert isinstance(network, Counting)
    before = network.times
    with evil_server() as elsewhere:
        page = browser.new_page()
        page.goto(f"http://{host}:{elsewhere}/")
        target = f"http://{HOST}:{port}"
        learned = page.evaluate(TRY_ALL, [target, list(png(PIXELS[0]))])
        assert set(learned.values()) <= {"nothing", "opaque", "sent", "not sent"}, learned
        # a form that takes the whole page there
        page.evaluate(
            """(target) => {
                const form = document.createElement('form');
                form.enctype = 'multipart/form-data';
                Object.assign(form, { method: 'post', action: target });
                document.body.append(form);
                form.submit();
            }""",
            f"{target}/predict",
        )
        page.wait_for_url(f"{target}/predict")
        assert "a page of another site may not ask here" in page.content()
        page.close()
    assert network.times == before


def test_a_name_that_was_rebound_to_this_machine_is_refused(
    browser: Any, run: Run, port: int
) -> None:
    network = run.model.network
    assert isinstance(network, Counting)
    before = network.times
    page = browser.new_page()
    page.goto(f"http://evil.example:{port}/")
    assert "Host=evil.example" in page.content()
    asking = (
        "async () => (await fetch('/predict', { method: 'POST', body: new Blob(['x']) })).status"
    )
    assert page.evaluate(asking) == 403
    page.close()
    assert network.times == before


def test_the_page_itself_could_not_ask_elsewhere(browser: Any, port: int) -> None:
    """Whatever came into it: the policy holds."""
    page = browser.new_page()
    page.goto(f"http://{HOST}:{port}/")
    with evil_server() as elsewhere:
        tried = page.evaluate(
            """async (elsewhere) => {
                const script = document.createElement('script');
                script.textContent = 'window.ran = true';
                document.body.append(script);
                const asked = await fetch(elsewhere).then(() => 'asked', () => 'refused');
                const image = await new Promise((done) => {
                    const made = new Image();
                    made.onload = () => done('loaded');
                    made.onerror = () => done('refused');
                    made.src = elsewhere + 'x.png';
                });
                return [window.ran === undefined, asked, image];
            }""",
            f"http://{HOST}:{elsewhere}/",
        )
    page.close()
    assert tried == [True, "refused", "refused"]
