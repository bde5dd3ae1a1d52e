"""Asking, teaching and undoing in a real browser, with real pictures."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("playwright.sync_api", reason="needs playwright")

from playwright.sync_api import Page, expect

from sapwood.learner import Learner

from ..conftest import ASK, BACKBONE, SIDE, TEACH
from .conftest import Run, Visit, serving

MARKUP = "<img src=x onerror=alert(1)>"
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True}

# Files that lie in memory, as if dragged from a folder.
_DRAGGED = """files => {
    const transfer = new DataTransfer();
    for (const { name, content } of files) {
        const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
        transfer.items.add(new File([bytes], name, { type: "image/png" }));
    }
    return transfer;
}"""


@pytest.fixture(scope="module")
def photographs(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Real pictures as files: of CIFAR-10's birds and ships, and of CamVid's streets."""
    folder = tmp_path_factory.mktemp("photographs")
    names = json.loads((shared_data / "cifar10" / "classes.json").read_text())["classes"]
    found: dict[str, list[Path]] = {}
    with np.load(shared_data / "cifar10" / "test.npz") as data:
        images, labels = data["images"], data["labels"]
        for name in ("bird", "ship"):
            for index in np.flatnonzero(labels == names.index(name))[:12]:
                found.setdefault(name, []).append(folder / f"{name}-{index}.png")
                Image.fromarray(images[index]).save(found[name][-1])
    streets = sorted((shared_data / "camvid" / "test" / "images").iterdir())
    found["street"] = streets[::20][:8]
    return found


@pytest.fixture(scope="module")
def state(settled: None, photographs: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It names ships, and birds under a name that is markup."""
    learner = Learner.create(tmp_path_factory.mktemp("page") / "zoo", backbone=BACKBONE, method="ncm", image_size=SIDE)
    for name, task in (("ship", "vessels"), ("bird", "animals")):
        label = MARKUP if name == "bird" else name
        learner.learn([(Image.open(path), label) for path in photographs[name][:10]], task=task)
    return learner.state.path


@pytest.fixture(scope="module")
def address(state: Path) -> Iterator[str]:
    with serving(state) as where:
        yield where


def drop(page: Page, field: str, paths: list[Path]) -> None:
    files = [{"name": path.name, "content": base64.b64encode(path.read_bytes()).decode()} for path in paths]
    page.dispatch_event(field, "drop", {"dataTransfer": page.evaluate_handle(_DRAGGED, files)})


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
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(photographs["ship"][11])
    expect(page.locator("#ask-status")).to_have_text("1 picture answered")
    page.get_by_role("button", name="Clear").press("Enter")
    expect(page.locator(".answer")).to_have_count(0)
    expect(page.locator("#ask-drop input")).to_be_focused()


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
        if name != "phone":  # the same elements in the same colours
            faults = axe.run(page).response["violations"]
            assert [(fault["id"], [node["html"] for node in fault["nodes"]]) for fault in faults] == []
        wide, window = page.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
        assert wide <= window  # nothing but tables scrolls sideways, and those in their own box


def test_masks_lie_over_the_picture(
    visit: Visit, run: Run, drawing: Path, photographs: dict[str, list[Path]], artefacts: Path
) -> None:
    where = run(drawing)
    page = visit(where)
    page.locator("#known").wait_for()
    page.locator("#ask-drop input").set_input_files(photographs["street"][0])
    expect(page.locator("#ask-status")).to_have_text("1 picture answered")
    canvas = page.locator("canvas")
    picture = Image.open(photographs["street"][0])
    assert canvas.evaluate("one => [one.width, one.height]") == list(picture.size)
    legend = page.locator(".legend label")
    expect(legend.first).to_be_visible()
    expect(canvas).to_have_attribute("aria-label", re.compile("ant|bee"))

    def inked() -> np.ndarray:
        content = canvas.evaluate("one => one.toDataURL().split(',')[1]")
        return np.asarray(Image.open(BytesIO(base64.b64decode(content))).convert("RGB"), np.int64)

    covered = inked()
    for box in range(legend.count()):
        legend.nth(box).click()
    bare = inked()
    assert np.abs(bare - np.asarray(picture.convert("RGB"), np.int64)).mean() < 3  # JPEG decoders differ a little
    assert np.abs(covered - bare).mean() > 10
    for box in range(legend.count()):
        legend.nth(box).click()
    page.get_by_label("Opacity of the mask").fill("100")
    full = inked()
    shown = {tuple(colour) for colour in full[full.sum(-1) > 0][::97].tolist()}
    assert {(128, 0, 0), (0, 128, 0)} & shown  # the colours of ant and bee, unmixed
    page.screenshot(path=artefacts / "masks.png", full_page=True)
    page.get_by_role("link", name="Teach").click()
    expect(page.locator("#teach-hint")).to_contain_text("classes.json")
