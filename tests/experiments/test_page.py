"""The report of a run as one HTML file: what is in it, and how a browser shows it."""

import json
import re
import shutil
import time

import numpy as np
import pytest
import tomli_w
from typer.testing import CliRunner

from jaxfl.cli import app
from jaxfl.experiments.finished import read_results
from jaxfl.report.page import MOST_POINTS, _places, write_page

TABLE = {
    "title": "A <small> grid & its report",
    "rounds": 6,
    "evaluate_every": 2,
    "byzantine": 2,
    "model": "softmax",
    "privacy": {"name": "message", "clip": 1.0, "noise_multiplier": 0.1},
    "data": {
        "name": "synthetic",
        "clients": 7,
        "samples": 140,
        "features": 4,
        "classes": 2,
        "client_test": 0.2,
    },
    "sweep": {
        "seed": [0, 1],
        "attack": ["none", {"name": "ipm", "scale": 20.0}],
        "aggregator": ["mean", "median", {"name": "krum"}, {"name": "bulyan"}],
    },
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    (folder / "one.toml").write_text(tomli_w.dumps(TABLE))
    words = ["run", str(folder / "one.toml"), "--out", str(folder / "run"), "--quiet"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert re.search(r"Report: *\S+run/report\.html", result.output.replace("\n", ""))
    return folder / "run"


def data_of(path):
    (text,) = re.findall(r"^const runs = (.*);$", path.read_text(), re.MULTILINE)
    return json.loads(text)


def test_the_numbers_are_those_of_the_log(run):
    (found,) = data_of(run / "report.html")
    cells = {(cell["defence"], cell["attack"]): cell for cell in found["cells"]}
    assert len(cells) == 8
    cell = cells["Krum", "IPM (scale 20)"]
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    own = [x for x in lines if (x["aggregator"], x["attack"]) == ("Krum", "IPM (scale 20)")]
    accuracy = np.array([[x["test_accuracy"] for x in own if x["seed"] == s
                          and "test_accuracy" in x] for s in (0, 1)])  # fmt: skip
    assert cell["rounds"] == [2, 4, 6]
    np.testing.assert_allclose(cell["mean"], accuracy.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(cell["low"], accuracy.min(axis=0), atol=1e-5)
    np.testing.assert_allclose(cell["high"], accuracy.max(axis=0), atol=1e-5)
    np.testing.assert_allclose(cell["final"], accuracy[:, -1].mean(), atol=1e-5)
    np.testing.assert_allclose(cell["spread"], accuracy[:, -1].std(ddof=1), atol=1e-5)
    for kind in ("honest", "malicious"):
        rates = [[x[f"{kind}_selected"] for x in own if x["round"] == r] for r in range(1, 7)]
        np.testing.assert_allclose(cell["selection"][kind], np.mean(rates, axis=1), atol=1e-5)
    assert cell["selection"]["rounds"] == list(range(1, 7))
    assert sum(cell["histogram"]) == 2 * 5
    assert cells["Mean", "No attack"]["selection"] is None
    assert cells["Bulyan", "No attack"]["status"] != "done"
    assert cells["Bulyan", "No attack"]["final"] is None


def test_clients_are_counted_by_their_accuracy(run):
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    ends = [line for line in lines if "client_histogram" in line]
    assert {line["round"] for line in ends} == {6}
    for line in ends:
        middles = (np.arange(20) + 0.5) / 20
        mean = np.average(middles, weights=line["client_histogram"])
        assert abs(mean - line["client_mean"]) <= 0.5 / 20


def test_what_was_run_is_said(run):
    text = (run / "report.html").read_text()
    assert "A &lt;small&gt; grid &amp; its report" in text
    assert "<small>" not in text
    for words in ("epsilon", "controls its messages", "&#34;python&#34;", "noise_multiplier = 0.1"):
        assert words in text, words
    rest = text[text.index("</script>") :]  # after Plotly's own
    assert not re.search(r"(src|href)=|https?://", rest)


def test_several_runs_in_one_file(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    out = tmp_path / "both.html"
    result = CliRunner().invoke(app, ["report", str(run), str(other), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert [found["name"] for found in data_of(out)] == ["run", "other"]


def test_a_damaged_run_is_named(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    (other / "rounds.jsonl").write_text("{}\n")
    assert "is damaged" in str(CliRunner().invoke(app, ["report", str(other)]).exception)


@pytest.mark.parametrize("length", [0, 1, 3, MOST_POINTS, MOST_POINTS + 1, 10_000])
def test_long_curves_are_thinned(length):
    places = _places(length)
    assert len(places) == min(length, MOST_POINTS)
    if length:
        assert (places[0], places[-1]) == (0, length - 1)
        assert np.all(np.diff(places) > 0)


@pytest.fixture
def browser():
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("needs chromium and chromedriver (Debian: chromium, chromium-driver)")
    options = selenium.ChromeOptions()
    options.binary_location = programs[0]
    for word in (
        *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"),
        *("disable-background-networking", "disable-component-update", "disable-sync"),
        "window-size=1200,1000",
    ):
        options.add_argument(f"--{word}")
    service = selenium.ChromeService(executable_path=programs[1])
    driver = selenium.Chrome(options=options, service=service)
    yield driver
    driver.quit()


def rows_of(browser):
    rows = browser.find_elements("css selector", "#tables tbody tr")
    return [[cell.text for cell in row.find_elements("css selector", "td")] for row in rows]


@pytest.mark.slow
def test_in_a_browser(run, browser):
    """Filters, sorts, marks; nothing is wider than a phone; dark where the user's system is."""
    browser.get((run / "report.html").as_uri())
    assert browser.get_log("browser") == []
    assert len(rows_of(browser)) == 4
    heads = browser.find_elements("css selector", "#tables th button")
    assert [head.text for head in heads] == ["defence", "No attack", "IPM (scale 20)"]
    heads[2].click()
    order = [row[0] for row in rows_of(browser)]
    values = [float(re.sub(r"^\W*", "", row[2]).split()[0]) for row in rows_of(browser)[:3]]
    assert values == sorted(values, reverse=True)
    assert order[-1].startswith("Bulyan")
    browser.find_elements("css selector", "#tables th button")[2].click()
    again = [row[0] for row in rows_of(browser)]
    assert again[:3] == order[2::-1]
    assert again[-1] == order[-1]
    best = browser.find_element("css selector", "td.best").text
    assert best.startswith("\u25b2") or best[0].isdigit()

    choose = "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
    choose += "s.dispatchEvent(new Event('change'))"
    browser.execute_script(choose, "defence", "Krum")
    assert [row[0] for row in rows_of(browser)] == ["Krum"]
    browser.execute_script(choose, "attack", "No attack")
    assert len(rows_of(browser)[0]) == 2
    browser.execute_script(choose, "attack", "")
    browser.execute_script(choose, "defence", "")
    for plot in ("heat", "curves", "selection", "clients"):
        assert browser.find_elements("css selector", f"#{plot} .main-svg"), plot

    browser.set_window_size(500, 800)
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 380, "height": 800, "deviceScaleFactor": 1, "mobile": True},
    )
    time.sleep(0.5)
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= 380
    colour = "return getComputedStyle(document.body).backgroundColor"
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    light = browser.execute_script(colour)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    assert browser.execute_script(colour) != light


@pytest.mark.slow
def test_a_long_grid_opens_in_two_seconds(run, tmp_path, browser):
    """90 cells of 10,000 evaluated rounds."""
    import dataclasses

    experiment, results = read_results(run)
    rng = np.random.default_rng(0)
    many = []
    for i in range(90):
        result = results[i % 2 * 4]
        labels = result.cell.labels | {"aggregator": f"Rule {i // 9}", "attack": f"Attack {i % 9}"}
        cell = dataclasses.replace(result.cell, labels=labels, rounds=10_000)
        test = rng.uniform(size=(1, 2, 10_000))
        many.append(dataclasses.replace(result, cell=cell, test=test, rounds=np.arange(1, 10_001)))
    write_page(tmp_path / "long.html", [(run, experiment, many)])
    started = time.monotonic()
    browser.get((tmp_path / "long.html").as_uri())
    assert len(rows_of(browser)) == 10
    assert time.monotonic() - started < 2
