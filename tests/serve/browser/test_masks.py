"""Masks in a real browser: an overlay with its legend, a lesson from a zip, the step back."""

from __future__ import annotations

import base64
import re
import shutil
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("playwright.sync_api", reason="needs playwright")

from playwright.sync_api import Locator, Page, expect

from sapwood.learner import Learner

from ..samples import encoded, pixels, scene
from ..servers import serving
from .conftest import Visit, drop

CAT = (128, 128, 0)  # the fourth colour of the palette


@pytest.fixture(scope="module")
def masks(drawing: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state that draws ants and bees, to be taught."""
    return Path(shutil.copytree(drawing, tmp_path_factory.mktemp("masks") / "meadow"))


@pytest.fixture(scope="module")
def address(masks: Path) -> Iterator[str]:
    with serving(masks) as served:
        yield served.address


def with_cat(index: int) -> tuple[np.ndarray, np.ndarray]:
    """A scene with a cat (value 3) where the ground was."""
    image, mask = scene(index)
    image[:, 14:28], mask[:, 14:28] = pixels("cat", index, (28, 14)), 3
    return image, mask


def packed(path: Path, *entries: tuple[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def inked(canvas: Locator) -> np.ndarray:
    content = canvas.evaluate("one => one.toDataURL().split(',')[1]")
    return np.asarray(Image.open(BytesIO(base64.b64decode(content))).convert("RGB"), np.int64)


def test_masks_lie_over_the_picture(
    visit: Visit, address: str, photographs: dict[str, list[Path]], artefacts: Path
) -> None:
    page = visit(address)
    page.locator("#known").wait_for()
    page.locator("#ask-drop input").set_input_files(photographs["street"][0])
    expect(page.locator("#ask-status")).to_have_text("1 picture answered")
    canvas = page.locator("canvas")
    picture = Image.open(photographs["street"][0])
    assert canvas.evaluate("one => [one.width, one.height]") == list(picture.size)
    legend = page.locator(".legend label")
    expect(legend.first).to_be_visible()
    expect(canvas).to_have_attribute("aria-label", re.compile("ant|bee"))

    covered = inked(canvas)
    for box in range(legend.count()):
        legend.nth(box).click()
    bare = inked(canvas)
    assert np.abs(bare - np.asarray(picture.convert("RGB"), np.int64)).mean() < 3  # JPEG decoders differ a little
    assert np.abs(covered - bare).mean() > 10
    for box in range(legend.count()):
        legend.nth(box).click()
    page.get_by_label("Opacity of the mask").fill("100")
    full = inked(canvas)
    shown = {tuple(colour) for colour in full[full.sum(-1) > 0][::97].tolist()}
    assert {(128, 0, 0), (0, 128, 0)} & shown  # the colours of ant and bee, unmixed
    page.screenshot(path=artefacts / "masks.png", full_page=True)
    page.get_by_role("link", name="Teach").click()
    expect(page.locator("#teach-hint")).to_contain_text("classes.json")


def test_a_closer_look_cuts_large_pictures(
    visit: Visit, address: str, masks: Path, tmp_path: Path, artefacts: Path
) -> None:
    (tmp_path / "large.png").write_bytes(encoded(scene(9, (84, 126))[0]))
    page = visit(address, bypass_csp=True)  # axe is a script that the policy would forbid
    learner = Learner.open(masks)
    for answered, tile in enumerate((False, True), 1):
        page.get_by_label("Look closer").set_checked(tile)
        with page.expect_response("**/v1/predict*") as said:
            page.locator("#ask-drop input").set_input_files(tmp_path / "large.png")
        expected = learner.predict([tmp_path / "large.png"], tile=tile)[0].shares
        assert said.value.json()["predictions"][0]["classes"] == pytest.approx(expected)
        expect(page.locator("canvas")).to_have_count(answered)
    page.screenshot(path=artefacts / "masks-closer.png", full_page=True)
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python").Axe()
    faults = axe.run(page).response["violations"]
    assert [(fault["id"], [node["html"] for node in fault["nodes"]]) for fault in faults] == []


def ask(page: Page, path: Path) -> dict[str, str]:
    """Names in the legend of a picture, and their colours."""
    page.get_by_role("link", name="Ask", exact=True).click()
    expect(page.locator("#ask")).to_be_visible()  # a moment after the click
    if page.get_by_role("button", name="Clear").is_visible():
        page.get_by_role("button", name="Clear").click()
    expect(page.locator("#answers > li")).to_have_count(0)
    drop(page, "#ask-drop .drop", [path])
    expect(page.locator("#ask-status")).to_have_text("1 picture answered")
    entries = page.locator(".legend li").all()
    colours = [entry.locator(".swatch").evaluate("one => one.style.backgroundColor") for entry in entries]
    return dict(zip(page.locator(".legend .name").all_text_contents(), colours, strict=True))


_HEARD = """() => {
    window.heard = [];
    const look = () => {
        const said = document.querySelector(".job [role=status]")?.textContent;
        const now = document.querySelector(".job .progress")?.getAttribute("aria-valuenow");
        if (said && now) window.heard.push([said, Number(now)]);
    };
    const everything = { subtree: true, childList: true, attributes: true };
    new MutationObserver(look).observe(document.getElementById("job"), everything);
}"""


def test_a_class_is_taught_by_masks_drawn_and_taken_back(
    visit: Visit, address: str, tmp_path: Path, artefacts: Path
) -> None:
    page = visit(address, expected=("422",))  # browsers note every refused request on the console
    fresh = tmp_path / "fresh.png"
    fresh.write_bytes(encoded(with_cat(20)[0]))
    assert ask(page, fresh).keys() <= {"ant", "bee"}

    page.get_by_role("link", name="Teach").click()
    teach, fault = page.get_by_role("button", name="Teach", exact=True), page.locator("#teach-form .error")
    teach.click()
    expect(fault).to_have_text("Choose a zip file first.")
    image = encoded(pixels("cat"))
    drop(page, "#teach-form .drop", [packed(tmp_path / "cats.zip", ("cat/1.png", image), ("ant/2.png", image))])
    teach.click()
    expect(fault).to_have_text("this state learns segmentation, but the archive is for classification")

    files = [("classes.json", b'{"background": 0, "ant": 1, "bee": 2, "cat": 3}')]
    for index in range(6):
        for part, content in zip(("images", "masks"), with_cat(index), strict=True):
            files.append((f"meadow/{part}/{index}.png", encoded(content)))
    files[0] = (f"meadow/{files[0][0]}", files[0][1])
    drop(page, "#teach-form .drop", [packed(tmp_path / "meadow.zip", *files)])
    expect(page.locator("#teach-form [role=status]")).to_contain_text("meadow.zip")
    page.get_by_text("More options").click()
    page.get_by_label("Passes over the pictures").fill("60")
    page.evaluate(_HEARD)
    teach.click()
    lesson = page.locator(".job").first
    expect(lesson.locator("h3")).to_have_text("Learned", timeout=120_000)
    heard = [(said, share) for said, share in page.evaluate("() => window.heard") if said.startswith("Training")]
    assert heard
    assert [share for _, share in heard] == sorted(share for _, share in heard)
    expect(page.locator("#facts")).to_contain_text("3 classes · 2 rounds")

    legend = ask(page, fresh)
    assert legend["cat"] == f"rgb({', '.join(map(str, CAT))})"
    page.get_by_label("Opacity of the mask").fill("100")
    middle = inked(page.locator("canvas"))[4:-4, 16:-16]
    assert (middle == CAT).all(-1).mean() > 0.9
    page.screenshot(path=artefacts / "masks-taught.png", full_page=True)

    page.get_by_role("link", name="History").click()
    expect(page.locator(".rounds > li")).to_have_count(2)
    page.get_by_role("button", name="Undo the last change").click()
    expect(page.locator("#undo-words")).to_contain_text("no longer knows cat")
    page.get_by_role("button", name="Undo", exact=True).click()
    expect(page.locator("#undone")).to_contain_text("Undone.")
    page.get_by_role("link", name="Ask", exact=True).click()
    expect(page.locator("#known-list li")).to_have_text(["ant", "bee"])
    assert ask(page, fresh).keys() <= {"ant", "bee"}
