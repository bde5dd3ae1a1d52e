"""Asking, teaching and undoing in a real browser, with real pictures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="needs playwright")

from PIL import Image
from playwright.sync_api import FileChooser, Route, expect

from sapwood.learner import Learner
from sapwood.serve.jobs import Job, Jobs
from sapwood.serve.worker import Order
from sapwood.state import State

from ..conftest import ASK, BACKBONE, SIDE, TEACH
from ..servers import serving
from .conftest import MARKUP, Run, Visit, drop

PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True}


def test_a_class_is_taught_recognised_and_taken_back(
    visit: Visit, address: str, photographs: dict[str, list[Path]], artefacts: Path
) -> None:
    page = visit(address)
    expect(page).to_have_title("Ask · zoo")
    expect(page.locator("#known-list li")).to_have_text(["ship", MARKUP])  # as text, not as an element

    drop(page, "#ask-drop .drop", [photographs["ship"][11], photographs["street"][7]])
    answers = page.locator(".answer")
    expect(answers).to_have_count(2)
    expect(page.locator("#ask-status")).to_have_text("2 pictures answered")
    expect(answers.first.locator(".verdict")).to_contain_text("ship")
    for index in range(2):
        expect(answers.nth(index).locator(".verdict")).not_to_contain_text("street")
    page.screenshot(path=artefacts / "ask.png", full_page=True)

    page.get_by_role("link", name="Teach").click()
    page.get_by_label("What is it called?").fill("street")
    drop(page, "#one .drop", photographs["street"][:6])
    expect(page.locator(".thumbs li")).to_have_count(6)
    page.get_by_role("button", name="Leave out").last.click()
    expect(page.locator("#one [role=status]")).to_contain_text("5 pictures")
    page.screenshot(path=artefacts / "teach.png", full_page=True)
    page.get_by_role("button", name="Teach “street”").click()
    lesson = page.locator(".job")
    expect(lesson.locator("h3")).to_have_text("“street” is learned", timeout=120_000)
    expect(page.locator("#facts")).to_contain_text("3 classes · 3 rounds")
    page.screenshot(path=artefacts / "learned.png", full_page=True)

    lesson.get_by_role("link", name="Ask it").click()
    drop(page, "#ask-drop .drop", [photographs["street"][7]])
    expect(page.locator("#ask-status")).to_have_text("1 picture answered")
    expect(answers.first.locator(".verdict strong")).to_have_text("street")
    expect(answers.first.locator(".sure")).to_contain_text("%")

    page.get_by_role("link", name="History").click()
    expect(page.locator(".rounds > li")).to_have_count(3)
    expect(page.locator(".heat tbody tr")).to_have_count(3)
    page.screenshot(path=artefacts / "history.png", full_page=True)
    page.get_by_role("button", name="Undo the last change").click()
    expect(page.locator("#undo-words")).to_contain_text("no longer knows street")
    expect(page.get_by_role("button", name="Keep it")).to_be_focused()
    page.screenshot(path=artefacts / "undo.png")
    page.keyboard.press("Escape")
    expect(page.locator(".rounds > li")).to_have_count(3)  # nothing was undone
    page.get_by_role("button", name="Undo the last change").click()
    page.get_by_role("button", name="Undo", exact=True).click()
    expect(page.locator("#undone")).to_contain_text("Undone.")
    expect(page.locator(".rounds > li")).to_have_count(2)
    page.get_by_role("link", name="Ask", exact=True).click()
    expect(page.locator("#known-list li")).to_have_text(["ship", MARKUP])


def test_what_is_refused_is_said_in_words(
    visit: Visit, address: str, photographs: dict[str, list[Path]], tmp_path: Path
) -> None:
    page = visit(address, expected=("415", "422", "400"))  # browsers note every refused request on the console
    page.locator("#known").wait_for()
    fake = tmp_path / "drawing.jpg"
    fake.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    page.locator("#ask-drop input").set_input_files([photographs["ship"][11], fake])
    expect(page.locator("#ask-status")).to_have_text("1 picture answered, 1 refused")  # one bad file spoils no other
    refused = page.locator(".answer.refused")
    expect(refused).to_contain_text("drawing.jpg")
    expect(refused.locator(".error")).to_have_text(re.compile(r"\w+ \w+ \w+"))

    page.get_by_role("link", name="Teach").click()
    page.get_by_role("button", name="Teach", exact=True).click()
    expect(page.locator("#teach-form .error")).to_have_text("Say what it is called.")
    name = page.get_by_label("What is it called?")
    expect(name).to_be_focused()
    name.fill("a/b")
    page.get_by_role("button", name="Teach “a/b”").click()
    expect(page.locator("#teach-form .error")).to_have_text("Add at least one picture of it.")
    page.locator("#one input[type=file]").set_input_files(photographs["ship"][:1])
    page.get_by_role("button", name="Teach “a/b”").click()
    expect(page.locator("#teach-form .error")).to_contain_text("path separator")
    expect(page.locator(".thumbs li")).to_have_count(1)  # nothing has to be typed or chosen again


def test_what_the_server_would_refuse_is_not_sent(
    visit: Visit, run: Run, state: Path, photographs: dict[str, list[Path]]
) -> None:
    page = visit(run(state, upload_bytes=8000, teach_pictures=2))  # a refused request would be noted on the console
    page.locator("#known").wait_for()
    page.locator("#ask-drop input").set_input_files([*photographs["ship"][:6], photographs["street"][0]])
    expect(page.locator("#ask-status")).to_have_text("6 pictures answered, 1 refused")
    expect(page.locator(".answer.refused .error")).to_contain_text("a picture may have")
    page.get_by_role("link", name="Teach").click()
    page.get_by_label("What is it called?").fill("gull")
    for paths, words in ((photographs["street"][:1], "a picture may have"), (photographs["bird"][:2], "2 may be sent")):
        page.locator("#one input[type=file]").set_input_files(paths)
        page.get_by_role("button", name="Teach “gull”").click()
        expect(page.locator("#teach-form .error")).to_contain_text(words)
        if paths[0] in photographs["street"]:
            page.get_by_role("button", name="Leave out").click()
            page.locator("#one input[type=file]").set_input_files(photographs["bird"][2])


def test_a_round_that_was_left_half_learned_can_be_dropped(
    visit: Visit, state: Path, photographs: dict[str, list[Path]], artefacts: Path
) -> None:
    orders: list[Order] = []
    version = State.open(state).version

    class Left(Jobs):  # as a worker does that finds another round half learned; processes are for other tests
        def _learn(self, job: Job) -> None:
            orders.append(job.order)
            told = f"{state}: round 'nest' is half learned with other options; give --restart to begin anew"
            refused, done = {"event": "failed", "error": told}, {"event": "done", "version": version.id}
            self._conclude(job, version, done if job.order.restart else refused, 0)

    with serving(state) as served:
        served.app.state.jobs = Left(state, 2)
        page = visit(f"{served.address}#teach")
        page.get_by_label("What is it called?").fill("gull")
        page.locator("#one input[type=file]").set_input_files(photographs["bird"][:3])
        page.get_by_role("button", name="Teach “gull”").click()
        lesson = page.locator(".job").last
        expect(lesson.locator("h3")).to_have_text("“gull” was not learned")
        expect(lesson.locator(".error")).to_contain_text("half learned")
        page.screenshot(path=artefacts / "half-learned.png", full_page=True)
        lesson.get_by_role("button", name="Drop it and learn this").click()
        expect(page.locator(".job").first.locator("h3")).to_have_text("“gull” is learned")
        assert [(order.restart, order.label, len(order.pictures)) for order in orders] == [
            (False, "gull", 3),
            (True, "gull", 3),
        ]
        page.close()  # before its server


def test_no_line_joins_rounds_that_were_measured_on_other_pictures(
    visit: Visit, run: Run, photographs: dict[str, list[Path]], tmp_path: Path
) -> None:
    def of(name: str, first: int, last: int) -> list[tuple[Image.Image, str]]:
        return [(Image.open(path), name) for path in photographs[name][first:last]]

    learner = Learner.create(tmp_path / "zoo", backbone=BACKBONE, method="ncm", image_size=SIDE)
    learner.learn(of("ship", 0, 6), test=of("ship", 6, 9))
    learner.learn(of("bird", 0, 6), test=[*of("ship", 6, 9), *of("bird", 6, 9)])
    learner.learn(of("street", 0, 5), test=[*of("ship", 9, 12), *of("bird", 6, 9), *of("street", 5, 8)])
    page = visit(f"{run(learner.state.path)}#history")
    lines = page.locator("path.thin")
    expect(lines).to_have_count(3)
    drawn = [lines.nth(index).get_attribute("d") or "" for index in range(3)]
    assert [(line.count("M"), line.count("L")) for line in drawn] == [(2, 1), (1, 1), (1, 0)]
    expect(page.get_by_text("Measured on different pictures after different rounds")).to_contain_text("task-1.")


def test_pictures_from_the_camera(visit: Visit, address: str) -> None:
    page = visit(f"{address}#teach", permissions=["camera"])
    page.get_by_role("button", name="Use the camera").click()
    shot = page.get_by_role("button", name="Take a picture")
    for _ in range(2):
        shot.click()
    expect(page.locator("#camera-status")).to_have_text("2 pictures taken")
    page.get_by_role("button", name="Done").click()
    expect(page.locator(".thumbs li")).to_have_count(2)
    assert page.locator("#camera-view").evaluate("view => view.srcObject") is None  # its light goes out


def test_by_keyboard_alone(visit: Visit, address: str, photographs: dict[str, list[Path]]) -> None:
    page = visit(address)
    page.locator("#known").wait_for()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.locator("#ask-drop input")).to_be_focused()
    choosers: list[FileChooser] = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    for _ in range(5):  # a browser without a window may let the first press pass
        if not choosers:
            page.keyboard.press("Enter")
            page.wait_for_timeout(1000)
    choosers[0].set_files(photographs["ship"][11])
    expect(page.locator("#ask-status")).to_have_text("1 picture answered")
    page.get_by_role("button", name="Clear").press("Enter")
    expect(page.locator(".answer")).to_have_count(0)
    expect(page.locator("#ask-drop input")).to_be_focused()
    page.get_by_role("link", name="Teach").press("Enter")
    page.get_by_role("link", name="Skip to the content").press("Enter")
    expect(page.locator("#main")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("radio", name="One class")).to_be_focused()  # it has not turned back to asking


def test_a_token_is_asked_for_and_forgotten_with_the_tab(visit: Visit, run: Run, state: Path) -> None:
    where = run(state, ask_token=ASK, teach_token=TEACH)
    page = visit(where, expected=("401",))
    field = page.get_by_role("textbox", name="Token")
    field.fill("wrong, and long enough")
    page.get_by_role("button", name="Use it").click()
    expect(page.locator("#token-words")).to_contain_text("not the token")
    field.fill(ASK)
    field.press("Enter")
    expect(page.locator("#known-list li")).to_have_count(2)
    assert page.evaluate("() => localStorage.length") == 0
    page.reload()
    expect(page.locator("#known-list li")).to_have_count(2)


def test_who_may_only_read_is_offered_no_more(visit: Visit, run: Run, state: Path) -> None:
    where = run(state, read_only=True)
    page = visit(f"{where}#teach")
    expect(page.get_by_role("heading", name="What is in the picture?")).to_be_visible()
    expect(page.get_by_role("link", name="Teach")).to_be_hidden()
    page.get_by_role("link", name="History").click()
    expect(page.locator(".rounds > li")).to_have_count(2)
    expect(page.locator("#undo")).to_be_hidden()


@pytest.mark.parametrize(
    ("name", "options"), [("light", {}), ("dark", {"color_scheme": "dark"}), ("phone", PHONE)], ids=lambda given: given
)
def test_everybody_can_read_it(
    visit: Visit,
    address: str,
    photographs: dict[str, list[Path]],
    artefacts: Path,
    name: str,
    options: dict[str, object],
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python").Axe()
    page = visit(address, bypass_csp=True, **options)  # axe is a script that the policy would forbid
    for part in ("ask", "teach", "history"):
        page.goto(f"{address}#{part}")
        page.locator(f"#{part}").wait_for()
        if part == "ask":
            page.locator("#ask-drop input").set_input_files([photographs["ship"][11], photographs["street"][7]])
            expect(page.locator("#ask-status")).to_have_text("2 pictures answered")
        if part == "teach":
            page.locator("#one input[type=file]").set_input_files(photographs["street"][:5])
            expect(page.locator(".thumbs li")).to_have_count(5)
        page.screenshot(path=artefacts / f"{part}-{name}.png", full_page=True)
        rules = {"light": {}, "dark": {"runOnly": ["color-contrast"]}}  # the elements are the same everywhere
        if name in rules:
            faults = axe.run(page, options=rules[name]).response["violations"]
            assert [(fault["id"], [node["html"] for node in fault["nodes"]]) for fault in faults] == []
        wide, window = page.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
        assert wide <= window  # nothing but tables scrolls sideways, and those in their own box


def test_pictures_may_come_early(visit: Visit, address: str, photographs: dict[str, list[Path]]) -> None:
    page = visit(address)
    held: list[Route] = []
    page.route("**/v1/state", lambda route: held.append(route))
    with page.expect_request("**/v1/state"):
        page.reload()
    page.locator("#ask-drop input").set_input_files([photographs["ship"][11]])
    expect(page.locator(".answer")).to_have_count(0)
    for route in held:
        route.continue_()
    expect(page.locator("#ask-status")).to_have_text("1 picture answered")


def test_what_was_cleared_away_while_on_its_way_counts_no_more(
    visit: Visit, address: str, photographs: dict[str, list[Path]]
) -> None:
    page = visit(address)
    page.locator("#known").wait_for()
    held: list[Route] = []
    page.route("**/v1/predict*", lambda route: held.append(route), times=1)
    page.locator("#ask-drop input").set_input_files(photographs["ship"][0])
    expect(page.locator("#ask-status")).to_have_text("Looking at 1 picture …")
    page.get_by_role("button", name="Clear").click()
    page.locator("#ask-drop input").set_input_files(photographs["ship"][1])
    held[0].continue_()
    expect(page.locator(".answer .verdict")).to_have_count(1)
    expect(page.locator("#ask-status")).to_have_text("1 picture answered")
