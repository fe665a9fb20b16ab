"""The page in a real browser: it draws, sorts, filters and fits, and asks nobody for anything."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cifar_lab.report.write import write_report
from tests.report.conftest import write_many, write_run

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
expect = playwright.expect
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs an installed chromium")

WIDE, PHONE = (1400, 1000), (400, 850)
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Open]:
    """Opens a page that must stay silent: no message, no error, no dialog, no request."""
    faults: list[str] = []
    contexts = []

    def open_page(file: Path, size: tuple[int, int] = WIDE, scheme: str = "light") -> Any:
        viewport = {"width": size[0], "height": size[1]}
        context = browser.new_context(viewport=viewport, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: faults.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))

        def dismiss(dialog: Any) -> None:
            faults.append("dialog")
            dialog.dismiss()

        page.on("dialog", dismiss)

        def see(request: Any) -> None:
            # the table's library is a module, and a module of one's own text is a blob
            if request.url != file.as_uri() and not request.url.startswith("blob:null/"):
                faults.append(f"request: {request.url}")

        page.on("request", see)
        page.goto(file.as_uri())
        page.wait_for_selector("body[data-charts=ready][data-tables=ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture(scope="module")
def real_page(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(sweep, tmp_path_factory.mktemp("real")) / "report.html"


def column(page: Any, table: str, title: str) -> list[str]:
    titles = page.locator(f"#{table} thead th").all_inner_texts()
    number = [text.strip() for text in titles].index(title) + 1
    found: list[str] = page.locator(f"#{table} tbody td:nth-child({number})").all_inner_texts()
    return found


def lines(page: Any, chart: str = "curve-chart") -> list[dict[str, Any]]:
    """Plotly's traces that a person sees as lines."""
    found: list[dict[str, Any]] = page.evaluate(
        f"""document.getElementById("{chart}").data
            .filter((t) => t.hoverinfo !== "skip" && t.visible !== "legendonly")
            .map((t) => ({{name: t.name, x: [...t.x], y: [...t.y]}}))"""
    )
    return found


def overflow(page: Any) -> int:
    width: int = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return width


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_chart_of_a_real_sweep_is_drawn_and_nothing_sticks_out(
    opened: Open, real_page: Path, artefacts: Path, size: tuple[int, int], scheme: str
) -> None:
    page = opened(real_page, size, scheme)
    charts = page.locator(".chart")
    assert charts.count() == 7
    for number in range(charts.count()):
        # at least one mark each: a point, a line, or a cell
        marks = charts.nth(number).locator(".scatterlayer path, .heatmaplayer image")
        assert marks.count() > 0, charts.nth(number).get_attribute("id")
    assert overflow(page) <= 0
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(v) for v in background[4:-1].split(",")) < 384) == (scheme == "dark")
    page.screenshot(path=artefacts / f"report_{size[0]}_{scheme}.png", full_page=True)


def test_every_axis_has_a_name(opened: Open, real_page: Path) -> None:
    page = opened(real_page)
    unnamed = page.evaluate(
        """[...document.querySelectorAll(".chart")].flatMap((chart) => ["xaxis", "yaxis"]
            .filter((axis) => !chart._fullLayout[axis].title.text)
            .map((axis) => `${chart.id} ${axis}`))"""
    )
    assert unnamed == ["seed-chart yaxis"]  # its ticks are names


def test_it_says_what_is_best_and_how_to_repeat_it(opened: Open, real_page: Path) -> None:
    page = opened(real_page)
    best = page.locator("#best article").first.inner_text()
    assert "python -m cifar_lab data=synthetic" in best
    assert "Selected by validation accuracy" in best
    assert "Welch" in best
    assert "others can't be told from it" in best
    assert "diverged" in page.locator("#failures").inner_text()


def test_a_click_on_a_title_sorts_by_number(opened: Open, real_page: Path) -> None:
    page = opened(real_page)
    header = page.locator("#run-table thead th", has_text="test")
    header.click()
    page.wait_for_selector("#run-table th[aria-sort=ascending]")  # it sorts when it finds time
    up = [float(text.removesuffix(" %")) for text in column(page, "run-table", "test")[1:]]
    assert up == sorted(up)  # after the dash of the run that diverged
    header.click()
    page.wait_for_selector("#run-table th[aria-sort=descending]")
    down = column(page, "run-table", "test")
    assert [float(text.removesuffix(" %")) for text in down[:-1]] == up[::-1]
    assert down[-1] == "–"  # noqa: RUF001


def test_the_filters_leave_what_matches(opened: Open, real_page: Path) -> None:
    page = opened(real_page)
    assert len(column(page, "run-table", "status")) == 9
    page.locator("#status").select_option("diverged")
    expect(page.locator("#run-table tbody tr")).to_have_count(1)
    assert column(page, "run-table", "status") == ["diverged"]
    page.locator("#status").select_option("")
    page.locator("#runs input[type=search]").fill("lr0.3 seed1")
    expect(page.locator("#run-table tbody tr")).to_have_count(2)
    names = column(page, "run-table", "run")
    assert all("lr0.3" in name and "seed1" in name for name in names)


def test_ticks_choose_the_curves(opened: Open, real_page: Path) -> None:
    page = opened(real_page)
    assert len(lines(page)) == 4  # of 5 configurations, one has not finished
    page.locator("[data-tick=none]").click()
    assert page.locator("#curve-chart .scatterlayer path").count() == 0
    page.locator("#configuration-table [data-group='1']").check()
    assert len(lines(page)) == 1
    page.locator("#curve-mode").select_option("runs")
    assert len(lines(page)) == 2
    page.locator("#run-table [data-run='2']").uncheck()
    assert len(lines(page)) == 1
    assert page.locator("#configuration-table [data-group='1']").evaluate(
        "box => box.indeterminate"
    )
    page.locator("[data-tick=all]").click()
    assert len(lines(page)) >= 8


def test_a_click_in_the_legend_hides_a_configuration(opened: Open, real_page: Path) -> None:
    page = opened(real_page)
    page.locator("#curve-chart .legendtoggle").first.click()
    # Plotly waits a moment, in case it's a double click
    page.wait_for_timeout(500)
    assert len(lines(page)) == 3


def test_smoothing_is_a_debiased_moving_average(opened: Open, tmp_path: Path) -> None:
    values = [0.1, 0.5, 0.2, 0.6]
    write_run(tmp_path / "run", val=values)
    page = opened(write_report(tmp_path) / "report.html")
    [raw] = lines(page)
    assert raw["x"] == [1, 2, 3, 4]
    assert raw["y"] == pytest.approx([100 * value for value in values])
    page.locator("#smoothing").fill("0.5")
    [smooth] = lines(page)
    expected, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = 0.5 * total + 0.5 * value, 0.5 * weight + 0.5
        expected.append(100 * total / weight)
    assert smooth["y"] == pytest.approx(expected)


def test_hovering_names_the_run_and_its_value(opened: Open, tmp_path: Path) -> None:
    write_run(tmp_path / "the_run", val=[0.25])
    page = opened(write_report(tmp_path) / "report.html")
    page.locator("#curve-chart").scroll_into_view_if_needed()
    page.locator("#curve-chart .scatterlayer .points path").first.hover(force=True)
    label = page.locator("#curve-chart .hoverlayer .hovertext")
    label.wait_for()
    assert "the_run" in label.text_content()
    assert "25" in label.text_content()


def test_accuracy_over_a_key_and_the_map_follow_what_is_chosen(
    opened: Open, real_page: Path
) -> None:
    page = opened(real_page)
    names = [line["name"] for line in lines(page, "line-chart") if line["name"]]
    assert names == ["num_blocks=[1]", "num_blocks=[1,1]"]
    assert page.evaluate('document.getElementById("line-chart").layout.xaxis.type') == "log"
    page.locator("#line-by").select_option("-1")
    assert [line["name"] for line in lines(page, "line-chart") if line["name"]] == ["mean"]
    assert "over all runs with whatever num_blocks." in page.locator("#line-note").inner_text()
    page.locator("#heat-x").select_option("1")
    page.locator("#heat-y").select_option("0")
    titles = page.evaluate(
        """["xaxis", "yaxis"].map((axis) =>
            document.getElementById("heat-chart").layout[axis].title.text)"""
    )
    assert titles == ["model.num_blocks", "optimizer.lr"]
    page.locator("#accuracy").select_option("test")
    layout = 'document.getElementById("line-chart").layout.yaxis.title.text'
    assert page.evaluate(layout) == "test accuracy (%)"


def test_a_mean_says_of_how_many_it_is(opened: Open, tmp_path: Path) -> None:
    write_run(tmp_path / "short", seed=0, val=(0.2, 0.3))
    write_run(tmp_path / "long", seed=1, val=(0.2, 0.3, 0.4))
    write_run(tmp_path / "again", seed=1, val=(0.9, 0.9, 0.9), ended="2025-01-01")
    write_run(tmp_path / "failed", seed=2, val=(0.1, 0.1), status="failed", test=None)
    page = opened(write_report(tmp_path) / "report.html")
    [counts] = page.evaluate(
        """document.getElementById("curve-chart").data
            .filter((t) => t.hoverinfo !== "skip").map((t) => [...t.text])"""
    )
    assert counts == ["2", "2", "1"]  # neither the failed one nor the repeated one
    [line] = lines(page)
    assert line["y"] == pytest.approx([20, 30, 40])
    assert "of different lengths" in page.locator("#best").inner_text()


def test_text_from_runs_is_never_markup(opened: Open, tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=http://127.0.0.1:9/x onerror=alert(2)>"
    write_run(tmp_path / "<b>bold<b> & {{7*7}}", overrides=[f"model={evil}"], val=(0.9,))
    write_run(tmp_path / "b", lr=0.3, status="failed", error=evil, test=None)
    page = opened(write_report(tmp_path) / "report.html")
    assert evil in page.locator("#failures").inner_text()
    assert "<b>bold<b> & {{7*7}}" in column(page, "run-table", "run")
    assert page.locator("img, #runs b").count() == 0


def test_runs_that_have_only_begun_are_drawn(opened: Open, tmp_path: Path) -> None:
    write_run(tmp_path / "run", status="running", val=(0.2, 0.3), test=None, metrics={})
    page = opened(write_report(tmp_path) / "report.html", PHONE)
    assert len(lines(page)) == 1
    assert "No run has finished yet" in page.locator("#best").inner_text()
    assert overflow(page) <= 0


def test_several_data_sets_are_chosen_among(opened: Open, tmp_path: Path) -> None:
    synthetic = {"name": "synthetic", "digest": "5" * 64}
    for seed in range(3):
        write_run(tmp_path / f"a{seed}", seed=seed, lr=0.1)
        write_run(tmp_path / f"b{seed}", seed=seed, lr=0.2)
    write_run(tmp_path / "c", lr=0.3, data=synthetic, val=(0.8,), test=0.77)
    page = opened(write_report(tmp_path) / "report.html")
    assert page.locator("#best article").count() == 2
    assert {x for line in lines(page, "line-chart") for x in line["x"]} == {0.1, 0.2}
    page.locator("#data-set").select_option("1")
    assert {x for line in lines(page, "line-chart") for x in line["x"]} == {0.3}


@pytest.mark.slow
def test_a_thousand_runs_of_a_hundred_epochs(opened: Open, tmp_path: Path, artefacts: Path) -> None:
    write_many(tmp_path / "many", configurations=200, seeds=5, epochs=100, images=10_000)
    page_file = write_report(tmp_path / "many") / "report.html"
    assert page_file.stat().st_size < 15e6
    page = opened(page_file)
    assert len(lines(page)) == 7
    page.locator("#curve-mode").select_option("runs")
    page.locator("[data-tick=all]").click()
    assert len(lines(page)) == 60
    assert "60 of 1000 runs drawn (1000 are ticked" in page.locator("#curve-count").inner_text()
    page.locator("#runs input[type=search]").fill("0.0422 seed3")
    expect(page.locator("#run-table tbody tr")).to_have_count(5)
    assert overflow(page) <= 0
    page.screenshot(path=artefacts / "report_1000_runs.png", full_page=True)
    started = time.monotonic()
    page.locator("[data-tick=best]").click()
    print(f"redrawn in {time.monotonic() - started:.2f} s")
