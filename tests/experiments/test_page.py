"""The report of a run as one HTML file: what is in it, and how a browser shows it."""

import dataclasses
import itertools
import json
import re
import shutil
import time

import numpy as np
import pytest
import tomli_w
from helpers import ran
from typer.testing import CliRunner

from jaxfl.cli import app
from jaxfl.experiments.finished import read_results
from jaxfl.experiments.from_log import _in_stretches, not_run
from jaxfl.experiments.lines import CLIENT_BINS, add_clients
from jaxfl.experiments.results import SELECTED
from jaxfl.report.page import MOST_POINTS, _places, write_page

TABLE = {
    "title": "A <small> grid & its report",
    "rounds": 6,
    "evaluate_every": 2,
    "byzantine": 2,
    "model": "softmax",
    "optimizer": {"name": "sgd"},
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
    folder, shown = ran(TABLE, tmp_path_factory.mktemp("page"))
    assert re.search(r"Report: *\S+run/report\.html", shown)
    return folder


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
    assert cells["Median", "No attack"]["selection"] is None
    assert cells["Bulyan", "No attack"]["status"] != "done"
    assert cells["Bulyan", "No attack"]["final"] is None


def test_clients_are_counted_by_their_accuracy(run):
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    ends = [line for line in lines if "client_histogram" in line]
    assert {line["round"] for line in ends} == {6}
    for line in ends:
        middles = (np.arange(20) + 0.5) / 20
        mean = np.average(middles, weights=line["client_histogram"])
        assert abs(mean - line["client_mean"]) <= 0.5 / 20 + 1e-6


def test_counts_of_clients():
    lines = [{}, {"seed": 0}, {}, {"seed": 1}]
    accuracy = np.array([[0.0, 0.31, 0.33, 1.0], [0.5, np.nan, 0.5, 0.5]])
    add_clients(lines, accuracy, np.array([[0, 0, 0, 1], [0, 0, 1, 0]], bool))
    first, second = np.zeros((2, CLIENT_BINS), int)
    first[[0, 6]] = 1, 2
    second[10] = 2
    assert [line.get("client_histogram") for line in lines] == [
        *(None, first.tolist()),
        *(None, second.tolist()),
    ]
    add_clients(lines[:1], np.array([0.99]), np.array([False]))  # one run has no axis of runs
    assert lines[0]["client_histogram"][-1] == 1


def test_stretches_of_rounds(run):
    """Of 100 rounds in 60 stretches, each rate is of the rounds up to the one it is labelled."""
    _, results = read_results(run)
    cell = dataclasses.replace(results[0].cell, rounds=100)
    lines = [
        {"candidate": 0, "round": r, "honest_selected": r / 100, "malicious_selected": None}
        for r in range(1, 101)
    ]
    rates = _in_stretches(cell, lines, SELECTED, 60)
    ends = dataclasses.replace(results[0], cell=cell).selection_rounds
    assert (len(ends), ends[-1]) == (60, 100)
    for begin, end, rate in zip([0, *ends[:-1]], ends, rates[0, 0], strict=True):
        np.testing.assert_allclose(rate, np.mean(np.arange(begin + 1, end + 1)) / 100)
    assert np.isnan(rates[0, 1]).all()


def test_what_was_run_is_said(run):
    text = (run / "report.html").read_text()
    assert "A &lt;small&gt; grid &amp; its report" in text
    assert "<small>" not in text
    rest = text[text.index("</script>") :]  # after Plotly's own
    for words in ("epsilon", "controls its messages", "&#34;python&#34;", "noise_multiplier = 0.1"):
        assert words in rest, words
    assert not re.search(r"(src|href)=|https?://", rest)


def test_several_runs_in_one_file(run, tmp_path):
    others = [shutil.copytree(run, tmp_path / name) for name in ("other", "again/run")]
    (others[0] / "environment.json").write_bytes(b"\x00")  # results do not depend on it
    out = tmp_path / "all.html"
    result = CliRunner().invoke(app, ["report", str(run), *map(str, others), "--out", str(out)])
    assert result.exit_code == 0, result.output
    names = [found["name"] for found in data_of(out)]
    assert names == [str(run.resolve()), "other", str(others[1].resolve())]
    assert f"[{names[2]}]</h2>" in out.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "attacks", "rows"),
    [
        ({"sweep": {"attack.scale": [1.0, 2.0]}}, {"IPM"}, {"scale 1.0", "scale 2.0"}),
        ({"sweep": {"seed": [0]}}, {"IPM (scale 0.5)"}, {"odd"}),
        ({"tune": {"optimizer.learning_rate": [0.1, 0.2]}, "validation": 0.2}, None, None),
    ],
)
def test_grids_of_other_axes(tmp_path, changes, attacks, rows):
    """One over a number of the attack; none; one that is tuned."""
    table = TABLE | {"attack": {"name": "ipm", "scale": 0.5}, "rounds": 2, "sweep": {}} | changes
    (tmp_path / "odd.toml").write_text(tomli_w.dumps(table))
    words = ["run", str(tmp_path / "odd.toml"), "--out", str(tmp_path / "odd"), "--quiet"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    (found,) = data_of(tmp_path / "odd" / "report.html")
    if attacks is None:
        assert {cell["tuned"] for cell in found["cells"]} <= {
            "optimizer.learning_rate 0.1",
            "optimizer.learning_rate 0.2",
        }
        return
    assert {cell["attack"] for cell in found["cells"]} == attacks
    assert {cell["row"] for cell in found["cells"]} == rows
    assert all(cell["defence"] == "Mean" for cell in found["cells"])


def test_a_damaged_run_is_named(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    (other / "rounds.jsonl").write_text("{}\n")
    refused = CliRunner().invoke(app, ["report", str(other)])
    assert "is damaged" in str(refused.exception)


def test_a_damaged_run_hides_no_other(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    (other / "rounds.jsonl").write_text("{}\n")
    out = tmp_path / "both.html"
    folders = [str(other), str(run), str(tmp_path / "none")]
    written = CliRunner().invoke(app, ["report", *folders, "--out", str(out)])
    assert [found["name"] for found in data_of(out)] == [run.name]
    compared = CliRunner().invoke(app, ["compare", *folders, str(run)])
    assert "+0.0 ± 0.0" in compared.stdout
    for shown in (written, compared):
        assert shown.exit_code == 1
        damaged, none = shown.stderr.splitlines()
        assert re.match(r"jaxfl: warning: .*other/rounds.jsonl is damaged", damaged)
        assert none.endswith("none holds no run")


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """Ranked, and with a backdoor whose attackers leave; Bulyan is not defined for so many."""
    window = {"name": "onset", "start": 0, "end": 2, "attack": "backdoor"}
    table = {
        "title": "Many attacks",
        "rounds": 4,
        "evaluate_every": 2,
        "byzantine": 2,
        "attacks_share_program": True,
        "model": "softmax",
        "data": {"name": "digits", "clients": 7},
        "sweep": {
            "seed": [0, 1],
            "attack": ["none", "sign_flip", "ipm", "alie", "label_flip", "gaussian", window],
            "aggregator": ["mean", "median", "bulyan", "krum"],
        },
    }
    return ran(table, tmp_path_factory.mktemp("attacked"))


def test_backdoors_are_in_the_page_and_in_the_terminal(attacked):
    folder, shown = attacked
    (found,) = data_of(folder / "report.html")
    _, results = read_results(folder)
    assert "in which it had been planted" in found["backdoors"]
    planted = [cell for cell in found["cells"] if cell["success"] is not None]
    wanted = [r for r in results if r.success is not None]
    assert len(planted) == len(wanted) == 3
    assert "Success of the backdoor in %" in shown
    for cell, result in zip(planted, wanted, strict=True):
        assert cell["attack"].startswith("Onset")
        assert cell["success"] == pytest.approx(result.attack_success, abs=1e-5)
        told = [f"{100 * value:.1f}" for value in (result.attack_success, result.planted)]
        lasted = f"{'> ' * (result.outlived > 0)}{result.lifespan:.0f}"
        assert cell["backdoor"] == "; ".join([*told, lasted])
        row = rf"│ {result.cell.labels['aggregator']} +│ +{re.escape(cell['backdoor'])} │"
        assert re.search(row, shown)
    assert {cell["backdoor"] for cell in found["cells"] if cell["success"] is None} == {"-"}


def test_a_page_without_backdoors_has_none(run):
    (found,) = data_of(run / "report.html")
    assert {cell["success"] for cell in found["cells"]} == {None}


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


def opens(browser, path):
    """Opens the page and waits for its rows: `get` may return before a slow renderer took over."""
    from selenium.webdriver.support.wait import WebDriverWait

    browser.get(path.as_uri())
    WebDriverWait(browser, 60).until(rows_of, "a page without rows")


def rows_of(browser):
    script = "return [...document.querySelectorAll('#tables tbody tr')]"
    return browser.execute_script(script + ".map(r => [...r.cells].map(c => c.textContent))")


def sections_shown(browser):
    places = browser.find_elements("css selector", "main > section[id]")
    return {place.get_attribute("id") for place in places if place.is_displayed()}


def draw_all(browser):
    """Scrolls to every picture, which is drawn when it comes near the window."""
    from selenium.webdriver.support.wait import WebDriverWait

    left = "return [...waiting.keys()].filter(id => document.getElementById(id).offsetParent)"
    while names := browser.execute_script(left):
        place = browser.find_element("id", names[0])
        browser.execute_script("arguments[0].scrollIntoView()", place)
        told = f"return !waiting.has({names[0]!r})"
        WebDriverWait(browser, 60).until(lambda b, told=told: b.execute_script(told))


def plots_that_do_not_fit(browser):
    """Those that are lower than their picture, or whose picture is wider than the page."""
    draw_all(browser)
    return browser.execute_script(
        """return [...document.querySelectorAll('.plot')].filter(p => p.offsetParent).filter(p => {
            const svg = p.querySelector('.main-svg').getBoundingClientRect();
            const box = p.getBoundingClientRect();
            return box.height < 100 || svg.height > box.height + 1 || svg.width > box.width + 1;
        }).map(p => p.id)"""
    )


@pytest.mark.slow
def test_in_a_browser(run, browser):
    """Filters, sorts, marks; nothing is wider than a phone; dark where the user's system is."""
    opens(browser, run / "report.html")
    assert browser.get_log("browser") == []
    assert len(rows_of(browser)) == 4
    heads = browser.find_elements("css selector", "#tables th button")
    assert [head.text for head in heads] == ["defence", "No attack", "IPM (scale 20)"]
    heads[2].click()
    values = [row[2] for row in rows_of(browser)]
    assert values[-1] == "n/a"
    numbers = [float(value.split()[0]) for value in values[:3]]
    assert numbers == sorted(numbers, reverse=True)
    assert browser.switch_to.active_element.text == "IPM (scale 20)", "the focus stays"
    browser.switch_to.active_element.click()
    values = [row[2] for row in rows_of(browser)]
    assert [float(value.split()[0]) for value in values[:3]] == numbers[::-1]
    assert values[-1] == "n/a"
    for name, wanted in (("best", max(numbers)), ("worst", min(numbers))):
        found = browser.find_elements("css selector", f"#tables tr td:nth-child(3).{name}")
        assert {float(cell.text.split()[-3]) for cell in found} == {wanted}
    plots = {f"{name}-section" for name in ("heat", "curves", "selection", "clients")}
    assert sections_shown(browser) == plots
    assert plots_that_do_not_fit(browser) == []
    assert not browser.find_elements("css selector", "[data-title^=Share]")
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0

    choose = "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
    choose += "s.dispatchEvent(new Event('change'))"
    browser.execute_script(choose, "defence", "Median")
    assert [row[0] for row in rows_of(browser)] == ["Median"]
    assert sections_shown(browser) == {"curves-section", "clients-section"}
    browser.execute_script(choose, "attack", "No attack")
    assert len(rows_of(browser)[0]) == 2
    browser.execute_script(choose, "attack", "")
    browser.execute_script(choose, "defence", "")
    assert sections_shown(browser) == plots

    phone = {"width": 380, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    time.sleep(1)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 380
    assert plots_that_do_not_fit(browser) == []
    colours = "return [document.body, document.querySelector('#curves .main-svg')]"
    colours += ".map(x => getComputedStyle(x).background)"
    draw_all(browser)
    light = browser.execute_script(colours)
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    time.sleep(0.5)
    draw_all(browser)
    assert all(a != b for a, b in zip(browser.execute_script(colours), light, strict=True))
    assert browser.get_log("browser") == []


@pytest.mark.slow
def test_data_sets_are_chosen_in_a_browser(run, tmp_path, browser):
    """Of two runs in one file."""
    data = TABLE["data"] | {"name": "digits", "clients": 7}
    other = {key: data[key] for key in ("name", "clients", "client_test")}
    sweep = {"seed": [0], "attack": ["none"], "aggregator": ["mean", "median"]}
    digits, _ = ran(TABLE | {"data": other, "sweep": sweep}, tmp_path)
    write_page(tmp_path / "both.html", [(path, *read_results(path)) for path in (run, digits)])
    opens(browser, tmp_path / "both.html")
    options = browser.find_elements("css selector", "#dataset option")
    assert [option.text for option in options] == ["all", "synthetic", "digits"]
    assert len(rows_of(browser)) == 6
    for option, rows, shown in ((2, 2, [False, True]), (1, 4, [True, False]), (0, 6, [True, True])):
        options[option].click()
        assert len(rows_of(browser)) == rows
        tables = browser.find_elements("css selector", "#tables tbody")
        assert len(tables) == sum(shown)
    assert browser.get_log("browser") == []


def click(browser, table, head):
    """Sorts by a column; its cells and all heads' state afterwards."""
    browser.find_elements("css selector", f"{table} th button")[head].click()
    assert browser.switch_to.active_element.tag_name == "button", "the focus stays"
    rows = browser.find_elements("css selector", f"{table} tbody tr")
    heads = browser.find_elements("css selector", f"{table} thead th")
    cells = [row.find_elements("css selector", "th, td")[head].text for row in rows]
    return cells, [head.get_attribute("aria-sort") for head in heads]


@pytest.mark.slow
def test_rankings_and_backdoors_are_sorted_in_a_browser(attacked, browser):
    opens(browser, attacked[0] / "report.html")
    places, state = click(browser, "#ranking-0", 0)
    assert (places, state[0]) == (["1", "2", "3"], "ascending")
    assert click(browser, "#ranking-0", 0)[0] == ["3", "2", "1"]
    for column in (2, 4):  # numbers: the largest first
        values, state = click(browser, "#ranking-0", column)
        numbers = [float(value.split()[0]) for value in values]
        assert numbers == sorted(numbers, reverse=True)
        assert state == [None] * column + ["descending"] + [None] * (7 - column)
    names, _ = click(browser, "#ranking-0", 1)
    assert names == sorted(names)
    # Two columns are called "under": only the one that was clicked is sorted by.
    assert sum(map(bool, click(browser, "#ranking-0", 3)[1])) == 1

    (head,) = browser.find_elements("css selector", "#backdoor-0 thead th:not(:first-child)")
    assert head.text.startswith("Onset")
    values, _ = click(browser, "#backdoor-0", 1)
    numbers = [float(value.split(";")[0]) for value in values]
    assert numbers == sorted(numbers, reverse=True)
    values, _ = click(browser, "#backdoor-0", 1)
    assert [float(value.split(";")[0]) for value in values] == numbers[::-1]
    accuracy = browser.find_elements("css selector", "#accuracy-0 th[aria-sort]")
    assert accuracy == [], "each table is sorted by itself"
    choose = "const s = document.getElementById('attack'); s.value = 'No attack';"
    browser.execute_script(choose + "s.dispatchEvent(new Event('change'))")
    assert browser.find_elements("css selector", "#backdoor-0") == []
    assert browser.get_log("browser") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("defences", "attacks", "seeds", "rounds"), [(10, 9, 2, 10_000), (87, 42, 3, 20)]
)
def test_a_large_grid_opens_in_two_seconds(
    run, tmp_path, browser, defences, attacks, seeds, rounds
):
    """One of long runs, and one of the arena's size."""
    experiment, results = read_results(run)
    rng = np.random.default_rng(0)
    many = []
    for defence, attack in itertools.product(range(defences), range(attacks)):
        result = results[6]  # of a rule that selects, under attack
        labels = {"aggregator": f"Rule {defence}", "attack": f"Attack {attack}"}
        many.append(
            dataclasses.replace(
                result,
                cell=dataclasses.replace(result.cell, labels=labels, rounds=rounds),
                test=rng.uniform(size=(1, seeds, rounds)),
                losses=np.ones((1, seeds)),
                rounds=np.arange(1, rounds + 1),
                rates=rng.uniform(size=(1, 2, min(rounds, 60))),
            )
        )
    experiment = dataclasses.replace(experiment, cells=tuple(result.cell for result in many))
    write_page(tmp_path / "large.html", [(run, experiment, many)])
    # Of the page's thread, whatever else runs here; the first file may be another process's.
    (tmp_path / "empty.html").write_text("<title>empty</title>")
    browser.get((tmp_path / "empty.html").as_uri())
    browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    opens(browser, tmp_path / "large.html")
    assert len(rows_of(browser)) == defences
    assert len(sections_shown(browser)) == 4
    assert len(browser.find_elements("css selector", "#rankings tbody tr")) == defences
    metrics = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    (took,) = [metric["value"] for metric in metrics if metric["name"] == "TaskDuration"]
    assert 0.1 < took < 2

    draw_all(browser)
    first = "return document.querySelector('#curves').data.filter(x => x.hovertemplate)"
    drawn = browser.execute_script(first + ".map(x => x.name)")
    ranked = browser.find_elements("css selector", "#rankings tbody td:nth-child(2)")[:10]
    assert set(drawn) == {cell.text for cell in ranked}
    under = browser.find_element("css selector", "#curves-section .under").text
    assert ("The first 10 of 87 by the ranking" in under) == (defences > 10)
    assert "Whatever is chosen above" in browser.find_element("id", "rankings").text


def grid_of(run, levels):
    """Cells of these labels with these accuracies, or None where one does not apply."""
    experiment, results = read_results(run)
    made = []
    for labels, level in levels:
        cell = dataclasses.replace(results[4].cell, labels=labels)  # of the mean, under attack
        ran = dataclasses.replace(results[4], cell=cell, test=np.full((1, 2, 3), level or 0.0))
        made.append(not_run(cell, "why") if level is None else ran)
    return dataclasses.replace(experiment, cells=tuple(r.cell for r in made)), made


@pytest.mark.slow
def test_curves_are_of_cells_that_ran_by_the_ranking_of_their_setting(run, tmp_path, browser):
    """The last of the ranking alone have one of the attacks; the settings' orders differ."""
    places = itertools.product(range(2), range(12), range(6))
    levels = [
        (
            {"data.name": f"Data {data}", "attack": f"A{attack}", "aggregator": f"R{rule}"},
            None if attack == 5 and rule < 10 else 0.01 * (30 + rule if data else 60 - rule),
        )
        for data, rule, attack in places
    ]
    experiment, made = grid_of(run, levels)
    write_page(tmp_path / "ranks.html", [(run, experiment, made)])
    opens(browser, tmp_path / "ranks.html")
    for attack, wanted in (
        ("A0", {f"Data 0 / R{i}" for i in range(5)} | {f"Data 1 / R{i}" for i in range(7, 12)}),
        ("A5", {f"Data {data} / R{rule}" for data in range(2) for rule in (10, 11)}),
    ):
        choose = f"const s = document.getElementById('attack'); s.value = '{attack}';"
        browser.execute_script(choose + "s.dispatchEvent(new Event('change'))")
        draw_all(browser)
        first = "return document.querySelector('#curves').data.filter(x => x.hovertemplate)"
        assert set(browser.execute_script(first + ".map(x => x.name)")) == wanted


def test_a_part_of_a_grid_is_said_to_be_one(run, tmp_path):
    levels = [({"attack": f"A{a}", "aggregator": r}, 0.5) for r in "PQ" for a in range(6)]
    experiment, made = grid_of(run, levels)
    write_page(tmp_path / "part.html", [(run, experiment, made[:-1])])
    (found,) = data_of(tmp_path / "part.html")
    assert "11 of 12 cells so far. " in found["caption"]
    assert [row[1] for row in found["rankings"][0]["rows"]] == ["P"]
    assert [cell["rank"] for cell in found["cells"]] == [0] * 6 + [None] * 5
    write_page(tmp_path / "whole.html", [(run, experiment, made)])
    assert "so far" not in data_of(tmp_path / "whole.html")[0]["caption"]


@pytest.mark.slow
def test_the_best_is_marked_among_equal_settings(run, tmp_path, browser):
    """Of two data sets the harder has a best rule, too."""
    experiment, results = read_results(run)
    levels = {("easy", "A"): 0.9, ("easy", "B"): 0.8, ("hard", "A"): 0.3, ("hard", "B"): 0.4}
    made = [
        dataclasses.replace(
            results[0],
            cell=dataclasses.replace(
                results[0].cell, labels={"data.name": name, "attack": "x", "aggregator": rule}
            ),
            test=np.full((1, 2, 3), level),
        )
        for (name, rule), level in levels.items()
    ]
    experiment = dataclasses.replace(experiment, cells=tuple(result.cell for result in made))
    write_page(tmp_path / "settings.html", [(run, experiment, made)])
    opens(browser, tmp_path / "settings.html")
    for mark, wanted in (("best", {"easy / A", "hard / B"}), ("worst", {"easy / B", "hard / A"})):
        rows = browser.find_elements("xpath", f"//tr[td[@class='{mark}']]/th")
        assert {row.text for row in rows} == wanted
    assert "among equal settings" in browser.find_element("id", "tables").text
