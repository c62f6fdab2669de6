"""The report in a real browser: headless Chromium opens it from disk."""

import random
import shutil
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.callbacks.report.predictions import decided, failed, question
from vrts.callbacks.metrics.summary import summarise
from vrts.callbacks.report.callback import make_thumbnails
from vrts.callbacks.report.entries import TAGS, report_entry, summary
from vrts.callbacks.report.page import render_report
from vrts.types import Clip, Round

HOSTILE = "</script><img src=x onerror=alert(1)><script>alert(2)</script>'\"&amp;{{ 7 * 7 }}\u2028"
NAMES = ("chromium", "chromium-browser", "google-chrome")
NUM_QUESTIONS = 2000
PAGE = 50
PLACES = ("kitchen", "garden", HOSTILE)


@pytest.fixture(scope="module")
def browser():
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("chromium is missing: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


class Visit:
    """One opening of a page, and all that went on meanwhile."""

    def __init__(self, browser, path, **options):
        self.page = browser.new_page(**options)
        self.requests, self.problems = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.problems.append("dialog"), dialog.dismiss()))
        start_s = time.perf_counter()
        self.page.goto(path.as_uri())
        self.seconds = time.perf_counter() - start_s

    @property
    def count(self) -> int:
        return int(self.page.text_content("#count").split()[0])

    def cards(self) -> list[str]:
        return self.page.locator("article h3").all_text_contents()

    def search(self, text: str) -> None:
        before = self.page.text_content("#count")
        self.page.get_by_label("Search").fill(text)
        self.page.wait_for_function(
            "before => document.getElementById('count').textContent !== before", arg=before
        )


@pytest.fixture(scope="module")
def predictions_and_entries():
    """Questions of every kind; the fourth one is hostile in all that it says."""
    rng = random.Random(7)
    found, entries = [], []
    for i in range(NUM_QUESTIONS):
        metadata = {"breakdown": {"place": PLACES[i % 3]}}
        answer = None if rng.random() < 0.1 else rng.choice("ABC")
        asked = question(f"q{i}", answer, text=f"Question number {i:05d}?", metadata=metadata)
        votes = {f"f{8 << k}": "".join(rng.choices("AABC-", k=5)) for k in range(rng.randint(1, 3))}
        if rng.random() < 0.3:
            votes["f8"] = "AAAAA"
        if rng.random() < 0.05:
            votes = {"f8": "-----"}
        prediction = failed(asked) if rng.random() < 0.1 else decided(asked, **votes)
        if prediction.rounds and rng.random() < 0.1:
            first = replace(prediction.rounds[0], num_damaged=2)
            prediction = replace(prediction, rounds=(first, *prediction.rounds[1:]))
        if i == 3:
            asked = question(HOSTILE, "A", text=HOSTILE, video=HOSTILE, metadata=metadata)
            last = Round(8, (HOSTILE,) * 3, (HOSTILE,) * 3, 1 / 3)
            prediction = replace(decided(asked, f8="ABC"), rounds=(last,))
        found.append(prediction)
        entries.append(report_entry(prediction, 2000))
    entries[3]["error"] = HOSTILE
    return found, entries


@pytest.fixture(scope="module")
def path(tmp_path_factory, predictions_and_entries):
    found, entries = predictions_and_entries
    grey = torch.full((4, 3, 56, 84), 90, dtype=torch.uint8)
    thumbnails = make_thumbnails(Clip(grey, (0, 1, 2, 3), 8.0, 4))
    thumbnails = {entry["id"]: thumbnails for entry in entries[:300]}
    category = {"num_questions": 9, "num_failed": 0, "num_scored": 9, "num_videos": 9}
    category |= {"accuracy": 0.5, "accuracy_stderr": 0.1}
    breakdown = {"place": dict.fromkeys(PLACES, category)}
    metrics = summarise(found, [8, 16, 32]) | {"breakdown": breakdown}
    settings = {"seed": 0, "presence_penalty": [0.4] * 30, "hostile": HOSTILE}
    path = tmp_path_factory.mktemp("report") / "report.html"
    summaries = [summary(entry) for entry in entries]
    page = render_report(summaries, iter(entries), metrics, thumbnails, settings, f"run {HOSTILE}")
    path.write_text("".join(page), encoding="utf-8")
    return path


@pytest.fixture
def visit(browser, path):
    visit = Visit(browser, path)
    yield visit
    assert visit.problems == []
    assert [url for url in visit.requests if not url.startswith("data:")] == [path.as_uri()]
    visit.page.close()


def test_a_report_of_2000_questions_opens_in_bounded_time(visit):
    assert visit.count == NUM_QUESTIONS
    assert len(visit.cards()) == PAGE
    assert visit.seconds < 10


def test_the_result_and_the_charts_are_there(visit, predictions_and_entries):
    metrics = summarise(predictions_and_entries[0], [8, 16, 32])
    shown = visit.page.locator("#result ~ div table").first.inner_text()
    assert f"{100 * metrics['accuracy']:.1f} ± {100 * metrics['accuracy_stderr']:.1f} %" in shown
    charts = visit.page.locator("figure img")
    assert charts.count() == 3
    assert all(charts.nth(i).evaluate("node => node.naturalWidth") > 300 for i in range(3))


@pytest.mark.parametrize("tag", TAGS)
def test_filters_show_exactly_their_questions(visit, predictions_and_entries, tag):
    expected = [entry for entry in predictions_and_entries[1] if tag in entry["tags"]]
    assert 0 < len(expected) < NUM_QUESTIONS
    visit.page.get_by_label("Show").select_option(tag)
    assert visit.count == len(expected)
    assert visit.cards() == [entry["question"] for entry in expected[:PAGE]]
    assert f"({len(expected)})" in visit.page.locator(f"option[value={tag}]").inner_text()


def test_categories_filters_and_search_go_together(visit, predictions_and_entries):
    entries = predictions_and_entries[1]
    places = Counter(entry["groups"]["place"] for entry in entries)
    for place in PLACES:
        visit.page.get_by_label("Category").select_option(label=f"{place} ({places[place]})")
        assert visit.count == places[place]
    visit.page.get_by_label("Category").select_option(label=f"garden ({places['garden']})")
    visit.page.get_by_label("Show").select_option("failed")
    both = [i for i in entries if i["groups"]["place"] == "garden" and "failed" in i["tags"]]
    assert visit.count == len(both)
    visit.search("NUMBER 001")
    found = [entry["question"] for entry in both if "number 001" in entry["question"]]
    assert 0 < len(found) < len(both)
    assert visit.cards() == found


def test_search_finds_reasoning_and_may_find_nothing(visit):
    visit.search("onerror=alert(1)")
    assert visit.cards() == [HOSTILE]
    visit.search("no such words")
    assert (visit.count, visit.cards()) == (0, [])
    assert visit.page.text_content("#page") == "page 1 of 1"


def test_pages_turn_by_keyboard(visit, predictions_and_entries):
    entries = predictions_and_entries[1]
    visit.page.get_by_role("button", name="Next").focus()
    visit.page.keyboard.press("Enter")
    assert visit.page.text_content("#page") == f"page 2 of {NUM_QUESTIONS // PAGE}"
    assert visit.cards() == [entry["question"] for entry in entries[PAGE : 2 * PAGE]]
    visit.page.get_by_role("button", name="Previous").press("Space")
    assert visit.cards()[0] == entries[0]["question"]
    assert visit.page.get_by_role("button", name="Previous").is_disabled()


def test_a_question_shows_frames_votes_and_reasoning(visit, predictions_and_entries):
    entry = next(
        i for i in predictions_and_entries[1] if i["id"] != HOSTILE and len(i["rounds"]) > 1
    )
    visit.search(entry["question"])
    card = visit.page.locator("article")
    assert card.locator("img").evaluate("node => node.naturalWidth") > 300
    rows = card.locator("tbody tr")
    assert rows.count() == len(entry["rounds"])
    for row, expected in zip(rows.all(), entry["rounds"], strict=True):
        for answer, count in expected["votes"]:
            assert f"{answer or 'no answer'} \u00d7 {count}" in row.inner_text()
    card.locator("summary").press("Enter")
    card.locator("pre").first.wait_for()
    texts = [c["text"] for r in entry["rounds"] for c in r["completions"]]
    assert card.locator("pre").all_text_contents() == texts


def test_hostile_text_stays_text(visit):
    before = visit.page.locator("script").count()
    visit.search(HOSTILE)
    card = visit.page.locator("article")
    card.locator("summary").click()
    card.locator("pre").first.wait_for()
    assert card.locator("h3").text_content() == HOSTILE
    assert card.locator("pre").all_text_contents() == [HOSTILE] * 3
    assert card.locator("p.failed").text_content() == HOSTILE
    assert HOSTILE in card.locator("p.quiet").first.text_content()
    assert visit.page.text_content("h1") == f"run {HOSTILE}"
    assert visit.page.locator("img[src='x']").count() == 0
    assert card.locator("script").count() == 0
    assert visit.page.locator("script").count() == before == 4


def test_scripts_that_are_not_the_page_s_own_do_not_run(visit):
    ran = visit.page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.ran = true";
            document.body.append(script);
            return window.ran === true;
        }"""
    )
    assert not ran
    assert len(visit.problems) == 1
    assert "Content Security Policy" in visit.problems.pop()


@pytest.mark.parametrize("width", [420, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_and_every_input_has_a_label(browser, path, width, scheme):
    size = {"width": width, "height": 900}
    visit = Visit(browser, path, viewport=size, color_scheme=scheme)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    unnamed = "[...document.querySelectorAll('input, select')].filter(n => !n.labels.length).length"
    assert visit.page.evaluate(unnamed) == 0
    visit.page.get_by_text("Settings of the run").click()
    keys = ("seed", "presence_penalty")
    names = [visit.page.get_by_role("rowheader", name=key) for key in keys]
    lines = "cell => { const range = document.createRange(); range.selectNodeContents(cell); "
    lines += "return range.getClientRects().length; }"
    assert [name.evaluate(lines) for name in names] == [1, 1]
    missing = "[...document.images].filter(image => !image.alt).length"
    assert visit.page.evaluate(missing) == 0
    assert visit.problems == []
    visit.page.close()
