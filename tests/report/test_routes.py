"""The routes of C-LoRA in a report: read without the backbone, drawn to one scale, their overlap by hand."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from sapwood.errors import ConfigError
from sapwood.learner import Learner
from sapwood.report import ReportData, ReportTask, Routes, SiteRoute, gather, render
from sapwood.report.route_maps import heat_map

from .helpers import Page, check_self_contained

TRAINING = {"epochs": 2, "lr": 1e-2, "precision": "fp32"}
RANK = 4


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> Learner:
    """Three rounds, of which the last trains the head alone."""
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("state") / "model"
    settings = {"adapter": {"rank": RANK, "targets": "v,q,fc1", "blocks": "-1:"}, "training": TRAINING}
    made = Learner.create(path, backbone="random:dinov2-tiny", method="c-lora", image_size=28, settings=settings)
    for task in range(3):
        pictures = [(random.integers(0, 256, (28, 28, 3), np.uint8), name) for name in (f"a{task}", f"b{task}") * 4]
        made.learn(pictures, task=f"round <{task}>", training={"adapt": "first"} if task == 2 else None)
    return made


def files(learner: Learner) -> list[dict[str, np.ndarray]]:
    return [load_file(file) for file in sorted(learner.state.path.glob("tasks/*/adapter.safetensors"))]


def test_routes_are_read_from_the_files_alone(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **named: object) -> None:
        raise AssertionError("the backbone was asked for")

    for name in ("sapwood.assembly.open_recorded", "sapwood.learner.create_backbone"):
        monkeypatch.setattr(name, refuse)
    found = gather(Learner.open(learner.state.path)).routes
    assert found is not None
    last = max(int(re.search(r"block\.(\d+)", site.site)[1]) for site in found.sites)  # type: ignore[index]
    assert [site.site for site in found.sites] == [f"block.{last}.{part}" for part in ("q", "v", "fc1")]
    _, second, third = files(learner)
    for place, site in enumerate(found.sites):
        assert np.array_equal(site.old, third["old"][place])
        assert np.array_equal(site.delta, second["last"][place])
        assert np.abs(site.delta).max() > 0


def test_overlap_by_hand(learner: Learner) -> None:
    found = gather(learner).routes
    assert found is not None
    first, second, _ = files(learner)
    expected = []
    for old, delta in zip(first["old"].astype(float), second["last"].astype(float), strict=True):
        left = np.linalg.svd(old)[0][:, : RANK // 2]
        expected.append(np.linalg.norm(left.T @ delta) / np.linalg.norm(delta))
    assert found.overlaps[0] is None, "there was nothing older"
    assert found.overlaps[1] == pytest.approx(expected, abs=1e-4)
    assert found.overlaps[2] is None, "the adapter did not learn"
    page = Page(render(gather(learner)))
    assert f"{np.mean(expected):.2f}" in page.texts
    assert {f"{value:.2f}" for value in expected} <= set(page.texts)


def test_the_page_shows_a_map_for_each_matrix(learner: Learner) -> None:
    html = render(gather(learner))
    check_self_contained(html)
    page = Page(html)
    assert page.find("h2", id="routes")
    pictures = [image for image in page.find("img") if (image["alt"] or "").startswith(("R of", "ΔR of"))]
    assert len(pictures) == 6
    assert "q: ΔR" in page.texts
    found = gather(learner).routes
    assert found is not None
    limits = {name: max(np.abs(getattr(site, name)).max() for site in found.sites) for name in ("old", "delta")}
    assert {f"{limit:.2g}" for limit in limits.values()} <= set(page.texts), "the ends of the scales"
    assert "round <1>" in page.texts
    assert render(gather(learner)) == html


def test_one_round_has_no_overlap_and_other_adapters_no_routes(learner: Learner, tmp_path: Path) -> None:
    one = Learner.create(tmp_path / "one", backbone="random:dinov2-tiny", method="c-lora", image_size=28)
    assert gather(one).routes is None
    one.learn([(np.full((28, 28, 3), shade, np.uint8), str(shade)) for shade in (0, 255)], training=TRAINING)
    html = render(gather(one))
    assert "There is no second route" in html
    assert "nan" not in html.split("<main>")[1].split("data:image")[0]
    other = Learner.create(tmp_path / "other", backbone="random:dinov2-tiny", method="seq-lora", image_size=28)
    other.learn([(np.full((28, 28, 3), shade, np.uint8), str(shade)) for shade in (0, 255)], training=TRAINING)
    assert gather(other).routes is None
    assert 'id="routes"' not in render(gather(other))


def test_a_state_whose_rounds_did_not_note_their_sites(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    record = json.loads(json.dumps(learner.record))
    for task in record["tasks"]:
        task["parts"]["adapter"]["meta"] = {}
    monkeypatch.setattr(learner.state, "version", replace(learner.state.version, record=record))
    assert gather(learner).routes is None


def test_colours_of_a_map() -> None:
    matrix = np.array([[0.0, 1.0, -1.0], [0.25, -0.25, 9.0], [1e-9, 0.0, -9.0]])
    data = base64.b64decode(heat_map(matrix, 1.0).removeprefix("data:image/png;base64,"))
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")).astype(int)
    assert pixels.shape == (3, 3, 4)
    assert pixels[..., 3][[0, 2, 2], [0, 0, 1]].tolist() == [0, 0, 0], "zero lets the page through"
    assert pixels[..., 3][[0, 0, 1, 2], [1, 2, 2, 2]].tolist() == [255] * 4, "full colour from the limit on"
    assert pixels[1, :2, 3] == pytest.approx([127.5, 127.5], abs=5), "the square root"
    positive, negative = pixels[0, 1, :3], pixels[0, 2, :3]
    assert positive[2] > positive[0]
    assert negative[0] > negative[2]
    assert np.array_equal(pixels[1, 0, :3], positive)
    assert np.array_equal(pixels[1, 1, :3], negative)


def test_many_blocks_are_folded_away() -> None:
    matrix = np.eye(2, dtype=np.float32)
    sites = tuple(SiteRoute(f"stage.1.block.{block}.{part}", matrix, matrix) for block in range(14) for part in "qv")
    task = ReportTask("birds", ("owl",), images=9, seconds=1.0, trainable_parameters=10, bytes=100)
    state = ("model", "v0001-0", "c-lora", "mit-b5", "today")
    html = render(ReportData(*state, tasks=(task,), accuracy=((0.5,),), routes=Routes(sites, (None,))))
    shown, hidden = html.split("2 more blocks")
    assert shown.count("<img") == 12 * 2 * 2
    assert hidden.count("<img") == 2 * 2 * 2
    assert "stage 1 block 13" in Page(html).texts


def test_wrong_routes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"must be \[r, r\], got \[2, 3\]"):
        SiteRoute("block.0.q", np.zeros((2, 3)), np.zeros((2, 3)))
    site = SiteRoute("block.0.q", np.eye(2), np.eye(2))
    with pytest.raises(ConfigError, match=r"one value a site \(1\), got \[2\]"):
        Routes((site,), (None, (0.5, 0.5)))
    with pytest.raises(ConfigError, match=r"must be in 0\.\.1"):
        Routes((site,), ((70.0,),))
    with pytest.raises(ConfigError, match="overlaps of 0 tasks, got 1"):
        ReportData("model", "v0001-0", "c-lora", "mit-b5", "today", routes=Routes((site,), (None,)))
