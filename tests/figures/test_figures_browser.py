"""The report in a browser: it opens without errors or requests, and what it offers works by mouse and by keys."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from figure_makers import make_study
from neuropolis.figures import neuron_parts
from neuropolis.figures.parts import Block, Part
from neuropolis.figures.report import page
from neuropolis.figures.sections import Section
from neuropolis.figures.tables import Table, numbers, words, written

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HOSTILE = "</script><script>document.title = 'broken'</script><img src=x onerror=\"document.title = 'broken'\">"
SHORT = "</script><script>x()"  # of a length that groups have
GROUPS = ("japan", "中国", SHORT, "mexico", "kenya")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'neuropolis[dev]'")
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs a browser: apt install chromium")
    with sync_api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    study = make_study(GROUPS, subject={"name": HOSTILE, "fingerprint": "f1"})
    path.write_text(page(study), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser: Any, html: Path) -> Iterator[Any]:
    """The page, with what the browser complained of and asked for."""
    context = browser.new_context(viewport={"width": 1300, "height": 900}, color_scheme="light")
    sheet = context.new_page()
    sheet.complaints, sheet.requests = [], []
    sheet.on("console", lambda message: sheet.complaints.append(message.text))
    sheet.on("pageerror", lambda error: sheet.complaints.append(str(error)))
    sheet.on("request", lambda request: sheet.requests.append(request.url))
    sheet.goto(html.as_uri())
    yield sheet
    assert sheet.complaints == []
    assert [url for url in sheet.requests if not url.startswith(("file:", "blob:", "data:"))] == []
    context.close()


def rows(sheet: Any, table: str) -> list[list[str]]:
    return sheet.eval_on_selector_all(
        f"#table-{table} tbody tr", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )


def focused(sheet: Any) -> str:
    return sheet.evaluate("document.activeElement.textContent")


def test_it_opens_and_text_stays_text(opened: Any) -> None:
    assert opened.title() == f"Neurons of {HOSTILE}"
    assert opened.locator("h1").inner_text() == f"Neurons of {HOSTILE}"
    assert opened.locator("img").count() == 0
    assert SHORT in [row[0] for row in rows(opened, "set-0")]
    opened.locator("#table-set-0 a", has_text="</script>").click()
    opened.wait_for_function("document.querySelector('.tools[data-for=table-scores-0] select')?.value !== ''")
    assert {row[1] for row in rows(opened, "scores-0")} == {SHORT}


def test_the_browser_writes_rows_as_the_page_s_maker_does(opened: Any, html: Path) -> None:
    served = re.findall(r'<table id="table-([^"]+)">.*?<tbody>\n(.*?)</tbody>', html.read_text(encoding="utf-8"), re.S)
    assert len(served) == 7
    for table, body in served:
        texts = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", body)]
        plain = [[re.sub("<[^>]+>", "", text) for text in row] for row in texts]
        shown = rows(opened, table)
        assert [[re.sub("&[^;]+;", "", text) for text in row[2:]] for row in plain] == [row[2:] for row in shown], table


def test_numbers_of_every_form_and_size_are_written_alike(browser: Any, tmp_path: Path) -> None:
    from neuropolis.figures import report

    values = [
        0.0,
        -0.0,
        0.03125,
        0.125,
        31.25,
        -0.04,
        1234567.891,
        1e-7,
        4.5e-5,
        0.9999,
        99999.0,
        -2.5,
        float("nan"),
        1e9,
    ]
    forms = [",", ".1f", ".2f", ".3f", ".4f", "+.1f", "+.3f", ".3g", "p"]
    columns = (words("n", range(len(values))), *(numbers(form, values, form) for form in forms))
    section = Section("numbers", "Numbers", Part(), (), (Table("numbers", "Numbers", columns),))
    path = tmp_path / "numbers.html"
    path.write_text(report.rendered([section], title="Numbers", about=[]), encoding="utf-8")
    sheet = browser.new_page()
    sheet.goto(path.as_uri())
    sheet.locator("#table-numbers th button").first.click()
    shown = rows(sheet, "numbers")
    assert [row[1:] for row in shown] == [[written(value, form) for form in forms] for value in values]
    sheet.close()


def test_sorting_turns_round_and_keeps_what_is_missing_last(opened: Any) -> None:
    head = opened.locator("#table-overlap-0 th", has_text="Jaccard")
    for way, sign in (("ascending", 1), ("descending", -1)):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == way
        values = [sign * float(row[3]) for row in rows(opened, "overlap-0")]
        assert values == sorted(values)
        assert len(set(values)) > 3


def test_filters_narrow_by_words_by_numbers_and_by_choice(opened: Any) -> None:
    field = opened.locator(".tools[data-for=table-scores-0] input")
    total = int(opened.locator(".tools[data-for=table-scores-0] output").inner_text().split()[2].replace(",", ""))
    field.fill("layer=3 rankingroup<=20")
    kept = rows(opened, "scores-0")
    assert 0 < len(kept) < total
    assert all(row[3] == "3" and int(row[2]) <= 20 for row in kept)
    field.fill("kenya")
    assert {row[1] for row in rows(opened, "scores-0")} == {"kenya"}
    field.fill("no such word")
    assert rows(opened, "scores-0") == []
    field.fill("")
    opened.locator(".tools[data-for=table-scores-0] select").first.select_option(label="中国")
    assert {row[1] for row in rows(opened, "scores-0")} == {"中国"}


def test_a_comparison_of_no_column_says_which_there_are(opened: Any) -> None:
    field, said = (opened.locator(f".tools[data-for=table-scores-0] {one}") for one in ("input", "output"))
    field.fill("bogus==")
    assert "\u201cbogus==\u201d compares no column: expected one of rankingroup, layer" in said.inner_text()
    field.fill("layer=")
    assert "a sign (<, <=, =, >=, >) and a number" in said.inner_text()
    field.fill("no such word")
    assert said.inner_text().endswith(" rows")
    field.fill("layer=3")
    assert said.inner_text().endswith(" rows")


def test_an_address_that_is_not_on_the_page_says_so(opened: Any, html: Path) -> None:
    dialog = opened.locator("dialog")
    for place, message in {
        "neuron/mlp/99/1": "No such neuron on this page", "neuron/x": "No such neuron on this page",
        "set/atlantis": "Sets with neurons on this page: japan, ", "neuron/%": "No such neuron on this page",
    }.items():  # fmt: skip
        opened.goto("about:blank")
        opened.goto(f"{html.as_uri()}#{place}")
        assert message in dialog.inner_text(), place
        assert place.split("/", 1)[1] in dialog.inner_text()
        opened.keyboard.press("Escape")
        assert not dialog.is_visible()
        opened.wait_for_function("location.hash === ''")
    opened.evaluate("location.hash = '#set/atlantis'")
    dialog.get_by_text("No such set").wait_for()
    opened.evaluate("location.hash = '#set/kenya'")
    opened.wait_for_function("!document.querySelector('dialog').open")
    assert {row[1] for row in rows(opened, "scores-0")} == {"kenya"}
    assert opened.evaluate("location.hash") == "#set/kenya"


def test_pages_of_a_table_hold_every_row_once(opened: Any) -> None:
    seen: list[list[str]] = []
    pager = opened.locator(".pager[data-for=table-scores-0]")
    while True:
        seen += rows(opened, "scores-0")
        following = pager.locator("[aria-label='Next page']")
        if following.is_disabled():
            break
        following.click()
    said = opened.locator(".tools[data-for=table-scores-0] output").inner_text()
    assert said == f"{len(seen)} of {len(seen)} rows"
    assert len({tuple(row[:2]) for row in seen}) == len(seen)


def headed(dialog: Any, text: str) -> None:
    """Wait until the dialog's heading is this: the page follows its address when the browser tells it to."""
    dialog.get_by_role("heading", name=text, exact=True).wait_for(timeout=10_000)


def test_a_neuron_opens_by_click_by_key_and_by_link(opened: Any, html: Path) -> None:
    dialog, first = opened.locator("dialog"), opened.locator("#table-scores-0 tbody a").first
    name = first.inner_text()
    layer, neuron = re.findall(r"\d+", name)
    opened.locator("#table-scores-0 tbody tr").first.locator("td").nth(3).click()
    headed(dialog, f"Neuron {neuron} in layer {layer}")
    assert opened.evaluate("location.hash") == f"#neuron/mlp/{layer}/{neuron}"
    assert dialog.locator("tbody tr").count() == len(GROUPS)
    opened.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert opened.evaluate("location.hash") == ""
    first.focus()
    opened.keyboard.press("ArrowDown")
    assert focused(opened) == rows(opened, "scores-0")[1][0]
    opened.keyboard.press("ArrowUp")
    opened.keyboard.press("Enter")
    headed(dialog, f"Neuron {neuron} in layer {layer}")
    assert focused(opened) == "Close"
    opened.keyboard.press("ArrowRight")
    other = rows(opened, "scores-0")[1][0]
    headed(dialog, "Neuron {1} in layer {0}".format(*re.findall(r"\d+", other)))
    opened.keyboard.press("Enter")
    assert not dialog.is_visible()
    opened.goto(f"{html.as_uri()}#neuron/mlp/{layer}/{neuron}")
    headed(dialog, f"Neuron {neuron} in layer {layer}")


def test_a_neuron_s_page_has_the_numbers_of_the_study(opened: Any) -> None:
    study = make_study(GROUPS)
    opened.locator("#table-scores-0 tbody a").first.click()
    layer, index = (int(part) for part in opened.evaluate("location.hash").split("/")[2:])
    headed(opened.locator("dialog"), f"Neuron {index} in layer {layer}")
    shown = {row[0]: row[1:] for row in opened.eval_on_selector_all(
        "dialog tbody tr", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )}  # fmt: skip
    for place, group in enumerate(GROUPS):
        values, signed = study.scores.values[place], float(study.scores.signed[place, layer, index])
        value = float(values[layer, index])
        assert int(shown[group][0]) == int((values > value).sum()) + 1
        assert float(shown[group][1]) == pytest.approx(value, rel=0.01)
        assert float(shown[group][2].replace("\u2212", "-")) == pytest.approx(signed, rel=0.01)
        assert shown[group][4] == ("yes" if (layer, index) in study.sets[group] else "no")


def test_what_other_parts_say_of_a_neuron_stands_on_its_page(browser: Any, tmp_path: Path) -> None:
    from neuropolis.figures import report

    part = neuron_parts.neurons(make_study(("japan", "kenya")))
    _, layer, index = part.tables[0].columns[0].values[0].split("/")
    block = Block(
        "Promotes", text=HOSTILE, tokens=[(" ramen", 1.0)], pairs=[("a", HOSTILE)], neurons=[("mlp", 0, 1, "x")]
    )
    part = dataclasses.replace(part, tables=(), blocks={("mlp", int(layer), int(index)): [block]})
    path = tmp_path / "blocks.html"
    html = report.rendered([Section("cards", "Cards", part)], title="Cards", about=[])
    path.write_text(html, encoding="utf-8")
    sheet = browser.new_page()
    sheet.goto(f"{path.as_uri()}#neuron/mlp/{layer}/{index}")
    said = sheet.locator("dialog").inner_text()
    assert "Promotes" in said
    assert said.count(HOSTILE) == 2
    assert sheet.locator("dialog .token").inner_text() == "\u2423ramen"
    assert sheet.title() == "Cards"
    sheet.close()


def test_light_and_dark_change_paper_and_figures(opened: Any) -> None:
    def colours() -> list[str]:
        return opened.evaluate(
            "[getComputedStyle(document.body).backgroundColor, "
            "getComputedStyle(document.querySelector('figure svg text')).fill]"
        )

    light = colours()
    opened.locator(".theme").click()
    dark = colours()
    assert light[0] != dark[0]
    assert light[1] != dark[1]
    opened.locator(".theme").click()
    assert colours() == light
    opened.emulate_media(color_scheme="dark")
    opened.evaluate("delete document.documentElement.dataset.theme")
    assert colours() == dark


def test_it_prints_without_its_tools_and_fits_a_narrow_screen(opened: Any) -> None:
    opened.set_viewport_size({"width": 390, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
    opened.emulate_media(media="print")
    assert not opened.locator(".tools").first.is_visible()
    assert opened.locator("figure svg").first.is_visible()
    assert opened.pdf(format="A4").startswith(b"%PDF")


def test_paper_has_all_rows_that_the_filter_leaves(opened: Any) -> None:
    opened.locator(".tools[data-for=table-scores-0] select").first.select_option(label="kenya")
    before, said = rows(opened, "scores-0"), opened.locator(".tools[data-for=table-scores-0] output").inner_text()
    counted = "window.onPaper = document.querySelectorAll('#table-scores-0 tbody tr').length"
    opened.evaluate(f"addEventListener('beforeprint', () => {{ {counted}; }})")
    opened.pdf(format="A4")
    assert len(before) == 25 < opened.evaluate("window.onPaper") == int(said.split()[0])
    assert rows(opened, "scores-0") == before
