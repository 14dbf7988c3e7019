"""The page in a real browser."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from segonnx.bench.machines import Machines
from segonnx.bench.result import Result
from segonnx.errors import InputError
from segonnx.report import html
from segonnx.sources import catalog
from tests.conftest import run
from tests.report import results

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no Chromium here: apt-get install chromium chromium-driver"
)
HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1280,1000",
)  # fmt: skip
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver

    assert BROWSER is not None
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Open:
    """Opens the page of a result, waits until all is drawn, and sees to it that nothing went wrong."""
    from selenium.webdriver.support.ui import WebDriverWait

    def show(result: Result | Machines, *, dark: bool = False, width: int = 1280) -> Any:
        path = tmp_path / "page.html"
        path.write_text(
            html.render(result if isinstance(result, Machines) else results.alone(result)), encoding="utf-8"
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get_log("performance")
        browser.get(path.as_uri())
        theme = "dark" if dark else "light"
        WebDriverWait(browser, 60).until(lambda b: _root(b, "drawn") == theme)
        assert browser.get_log("browser") == []
        assert _requests(browser) <= {path.as_uri()}
        return browser

    return show


def _root(browser: Any, name: str) -> str | None:
    found: str | None = browser.execute_script(f"return document.documentElement.dataset.{name}")
    return found


def _requests(browser: Any) -> set[str]:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    return {url for url in urls if not url.startswith(("data:", "blob:"))}


def _count(browser: Any, selector: str) -> int:
    found: int = browser.execute_script(f"return document.querySelectorAll({selector!r}).length")
    return found


def _column(browser: Any, number: int) -> list[str]:
    found: list[str] = browser.execute_script(
        f"return [...document.querySelectorAll('tbody tr')].map(row => row.children[{number}].dataset.value)"
    )
    return found


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
def test_every_chart_is_drawn(show: Open, dark: bool) -> None:
    result = results.make()
    result.rows[0] = results.profiled(result.rows[0])
    browser = show(result, dark=dark)
    # Three families, accuracy, roofline, one profile, and the samples of fourteen models.
    assert _count(browser, ".chart") == 3 + 1 + 1 + 1 + 14
    assert _count(browser, ".chart svg") == 6
    assert _count(browser, ".chart canvas") == 14
    for number in range(6):
        marks = _count(browser, f'[data-chart="{number}"] svg .role-mark path')
        assert marks >= 2, number
    back = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(15, 19, 24)") == dark
    assert _count(browser, "tbody tr") == len(result.rows)


@needs_browser
def test_the_theme_can_be_changed(show: Open) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    browser = show(results.make(("stunet-s",)))
    browser.find_element(By.ID, "theme").click()
    WebDriverWait(browser, 30).until(lambda b: _root(b, "drawn") == "dark")
    assert browser.find_element(By.ID, "theme").text == "Light"


@needs_browser
def test_the_table_sorts_by_mouse_and_keyboard(show: Open) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    result = results.make()
    result.rows[5] = results.failed(result.rows[5], "it crashed")
    browser = show(result)
    heads = browser.find_elements(By.CSS_SELECTOR, "thead button")
    time = [head.text for head in heads].index("time")
    heads[time].click()
    values = _column(browser, time)
    assert values[-1] == ""  # the row that failed
    numbers = [float(value) for value in values[:-1]]
    assert numbers == sorted(numbers) and len(set(numbers)) > 10
    assert heads[time].find_element(By.XPATH, "..").get_attribute("aria-sort") == "ascending"
    heads[time].send_keys(Keys.ENTER)
    values = _column(browser, time)
    assert [float(value) for value in values[:-1]] == sorted(numbers, reverse=True)
    assert values[-1] == ""
    heads[0].send_keys(Keys.SPACE)
    assert _column(browser, 0) == sorted(_column(browser, 0))
    assert heads[time].find_element(By.XPATH, "..").get_attribute("aria-sort") is None


@needs_browser
def test_the_page_fits_a_phone(show: Open) -> None:
    browser = show(results.make(), width=375)
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= 375
    assert browser.execute_script("return document.querySelector('.scroll').scrollWidth") > 375


@needs_browser
def test_texts_of_a_result_stay_texts(show: Open) -> None:
    result = results.make(("stunet-s", "totalsegmentator"))
    result.warnings = [HOSTILE]
    result.machine["cpu"] = HOSTILE
    result.rows = [replace(row, model=HOSTILE if row.model == "stunet-s" else row.model) for row in result.rows]
    result.ratios = [replace(one, model=HOSTILE if one.model == "stunet-s" else one.model) for one in result.ratios]
    result.rows[-1] = results.failed(result.rows[-1], HOSTILE)
    browser = show(result)
    assert "owned" not in browser.title or "<img" in browser.title
    assert _count(browser, "img") == 0
    assert _count(browser, "tbody tr") == len(result.rows)


@needs_browser
def test_a_script_that_gets_in_does_not_run(show: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the escaping stands the policy: a page with markup let through runs no script of it."""
    render = html.render

    def careless(result: Machines) -> str:
        return render(result).replace("<main>", f"<main>{HOSTILE.removeprefix('</script>')}")

    monkeypatch.setattr(html, "render", careless)
    with pytest.raises(AssertionError):  # the browser complains
        show(results.make(("stunet-s",)))


@needs_browser
def test_a_poor_result_has_a_page(show: Open) -> None:
    result = results.make(("stunet-s",), {"ort": 0.5})
    result.roofline_peaks, result.overhead, result.created = [], {}, ""
    assert _count(show(result), ".chart") == 2
    result.rows = [results.failed(result.rows[0], "the memory ran out")]
    browser = show(result)
    assert _count(browser, ".chart") == 0
    assert "nothing could be timed" in browser.execute_script("return document.body.innerText")
    assert "the memory ran out" in browser.execute_script("return document.body.innerText")


@needs_browser
def test_sweeps_are_told_apart(show: Open) -> None:
    result = results.make(("stunet-s",))
    result.rows += [replace(row, threads=1) for row in result.rows]
    text = show(result).execute_script("return document.body.innerText")
    assert "stunet-s, 1 threads" in text and "stunet-s, 2 threads" in text


def test_machines_stay_apart() -> None:
    one = results.make(("stunet-s", "unet-resnet18"))
    other = results.elsewhere(results.make(("stunet-s",)), cpu="Other CPU")
    other.warnings = ["hot"]
    content = Machines([one, other], ["a third one died"])
    page = html.render(content)
    assert "<title>segonnx bench: 2 machines</title>" in page
    for title, rows in zip(content.titles, (one.rows, other.rows), strict=True):
        assert page.count(f'<td data-value="{title}">') == len(rows)
        assert f"<h3>{title}</h3>" in page
        assert f"<h3>3D segmentation, {title}</h3>" in page
        assert f"<figcaption>stunet-s, {title}</figcaption>" in page
    assert "<li>a third one died</li>" in page
    assert "<li>2 cores of Other CPU: hot</li>" in page
    charts = json.loads(page.split('id="charts">')[1].split("</script>")[0])
    times = [chart for chart in charts if chart.get("layer") and "yOffset" in chart["layer"][0]["encoding"]]
    assert [len(chart["data"]["values"]) for chart in times] == [4, 4, 4]  # two families here, one there
    alone = html.render(results.alone(one))
    assert "<title>segonnx bench: Example CPU</title>" in alone
    assert "processor" not in alone.split("<thead>")[1].split("</thead>")[0]


def test_findings_say_what_the_verdicts_say() -> None:
    result = results.make(("stunet-s", "unet-resnet18"))
    found = dict(html.findings(result))
    assert len(found) == 2
    (volume,) = found["3D segmentation"]
    assert re.match(r"stunet-s: (ort and openvino|openvino and ort) are level", volume)
    apart = results.make(("stunet-s",), {"eager": 1.0, "ort": 0.5})
    assert html.findings(apart)[0][1][0].startswith("stunet-s: ort is fastest with ")
    few = results.make(("stunet-s",), {"eager": 1.0, "ort": 0.5}, rounds=3)
    assert "too few rounds for a verdict against eager" in html.findings(few)[0][1][0]


def test_the_page_holds_every_figure_without_scripts() -> None:
    page = html.render(results.alone(results.make()))
    for spec in catalog.systems():
        assert page.count(f'data-value="{spec.name}"') == 4
    assert "http://" not in page.split("<script", 1)[0]
    assert "default-src 'none'" in unescape(page[:1000])


def test_the_command_writes_a_page(tmp_path: Path) -> None:
    results.make(("stunet-s",)).write(tmp_path / "r.json")
    done = run("report", tmp_path / "r.json", "--html", tmp_path / "new" / "page.html", "--markdown")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new" / "page.html").read_text().startswith("<!doctype html>")
    assert "| stunet-s |" in done.stdout
    assert run("report", tmp_path / "r.json").returncode == 2
    missing = run("report", tmp_path / "none.json", "--markdown")
    assert missing.returncode == 2
    assert missing.stderr.count("\n") == 1


def test_without_its_libraries_the_page_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(InputError, match=r"pip install 'segonnx\[report\]'"):
        html.render(results.alone(results.make(("stunet-s",))))
