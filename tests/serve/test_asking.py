from __future__ import annotations

import base64
import io
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from sapwood.cli import main
from sapwood.data.decode import decode
from sapwood.data.pictures import Picture
from sapwood.errors import SapwoodError
from sapwood.learner import Learner
from sapwood.serve.app import create_app
from sapwood.serve.serving import Serving, Snapshot, _filled
from sapwood.serve.settings import ServeSettings

from .conftest import Serve
from .samples import encoded, picture, pixels, scene


def test_a_form_is_answered_as_the_library_answers(client: TestClient, taught: Path, shared_data: Path) -> None:
    contents = [
        picture("ant"),
        picture("bee", side=90),
        encoded(pixels("bee", 3), "JPEG"),
        encoded(pixels("ant", 5)[:9]),
    ]
    contents.append(next((shared_data / "camvid").rglob("*.png")).read_bytes())
    expected = Learner.open(taught).predict(contents, top=2)
    files = [("image", (f"{number}.png", content)) for number, content in enumerate(contents)]
    answer = client.post("/v1/predict?top=2", files=files)
    assert answer.status_code == 200
    said = answer.json()
    assert said["version"] == answer.headers["X-Sapwood-Version"] == Learner.open(taught).state.version.id
    assert said["calibrated"] is expected[0].calibrated
    assert [found["name"] for found in said["predictions"]] == [f"{number}.png" for number in range(5)]
    for found, wanted in zip(said["predictions"], expected, strict=True):
        assert found["class"] == wanted.label
        assert found["score"] == pytest.approx(wanted.score, abs=1e-6)
        assert found["known"] is wanted.known
        assert [entry["class"] for entry in found["top"]] == [label for label, _ in wanted.top]
        assert sum(entry["score"] for entry in found["top"]) == pytest.approx(1)
    assert {found["class"] for found in said["predictions"][:3]} == {"ant", "bee"}


def test_base64_says_the_same_as_a_form(client: TestClient) -> None:
    content = picture("bee")
    form = client.post("/v1/predict", files={"image": content}).json()["predictions"][0]
    body = {"images": [base64.b64encode(content).decode(), base64.encodebytes(content).decode()], "top": 1}
    first, second = client.post("/v1/predict", json=body).json()["predictions"]
    assert [first["name"], second["name"]] == ["picture 0", "picture 1"]
    assert first["class"] == second["class"] == form["class"] == "bee"
    assert first["score"] == pytest.approx(form["score"], abs=1e-6)
    assert len(first["top"]) == 1
    assert len(form["top"]) == 2


def test_masks_come_as_palette_pictures(drawing: Path, serve: Serve) -> None:
    client, content = serve(drawing), encoded(scene(9, (50, 50))[0])
    expected = Learner.open(drawing).predict([content])[0]
    said = client.post("/v1/predict", files={"image": ("ant.png", content)}).json()
    assert said["calibrated"] is None
    found = said["predictions"][0]
    mask = Image.open(io.BytesIO(base64.b64decode(found["mask"])))
    assert mask.mode == "P"
    assert np.array_equal(np.asarray(mask), expected.mask)
    assert found["size"] == [50, 50]
    assert found["classes"] == pytest.approx(expected.shares)
    state = client.get("/v1/state").json()
    assert state["kind"] == "segmentation"
    assert state["classes"] == ["background", "ant", "bee"]
    assert mask.getpalette()[:9] == [part for colour in state["palette"] for part in colour]


def test_large_pictures_may_be_cut_into_tiles(drawing: Path, serve: Serve, client: TestClient) -> None:
    masks, content = serve(drawing, queue=64), encoded(scene(9, (84, 126))[0])
    learner = Learner.open(drawing)
    whole, tiled = (learner.predict([content], tile=tile)[0].mask for tile in (False, True))
    assert (whole != tiled).any()

    def drawn(**sent: Any) -> np.ndarray:
        (found,) = masks.post("/v1/predict", **sent).json()["predictions"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(found["mask"]))))

    text = base64.b64encode(content).decode()
    for tile in ("true", "1", "on"):
        assert np.array_equal(drawn(data={"tile": tile}, files={"image": content}), tiled)
    assert np.array_equal(drawn(json={"images": [text], "tile": True}), tiled)
    assert np.array_equal(drawn(data={"tile": "false"}, files={"image": content}), whole)
    assert np.array_equal(drawn(json={"images": [text]}), whole)

    big, narrow = encoded(np.zeros((280, 420, 3), np.uint8)), encoded(np.zeros((14, 420, 3), np.uint8))
    for asked, sent, status, words in (
        (masks, {"data": {"tile": "maybe"}, "files": {"image": content}}, 422, "true or false"),
        (masks, {"json": {"images": [text], "tile": "yes"}}, 422, "true or false"),
        (masks, {"data": {"tile": "true"}, "files": {"image": big}}, 413, "182 views of 42 x 28 pixels, and 64 may"),
        (masks, {"data": {"tile": "true"}, "files": {"image": narrow}}, 413, "420 x 14 pixels cannot be drawn at once"),
        (masks, {"files": [("image", content), ("image", narrow)]}, 413, "picture 1"),
        (client, {"data": {"tile": "true"}, "files": {"image": content}}, 422, "names whole pictures"),
    ):
        answer = asked.post("/v1/predict", **sent)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), words
        assert words in answer.json()["detail"]
    assert np.array_equal(drawn(files={"image": big}), np.asarray(learner.predict([big])[0].mask))


def test_state_is_what_show_prints(client: TestClient, taught: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = client.get("/v1/state").json()
    with pytest.raises(SystemExit):
        main(["show", str(taught), "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert {key: said[key] for key in shown} == shown
    assert said["read_only"] is False
    assert said["needs_token"] == {"ask": False, "teach": False}
    assert said["limits"]["pictures"] == 64
    assert "palette" not in said


def test_a_version_made_elsewhere_is_taken_up(copied: Path, serve: Serve) -> None:
    client = serve(copied)
    before = client.post("/v1/predict", files={"image": picture("cat")}).json()
    assert before["predictions"][0]["class"] in ("ant", "bee")
    serving: Serving = client.app.state.serving  # type: ignore[attr-defined]
    weights = next(serving.current().learner.network.backbone.parameters()).data_ptr()
    elsewhere = Learner.open(copied)
    elsewhere.learn([(Image.fromarray(pixels("cat", index)), "cat") for index in range(8)])
    deadline = time.monotonic() + 20
    while client.get("/v1/state").json()["version"] != elsewhere.state.version.id:
        assert time.monotonic() < deadline, "the new version was not taken up"
        time.sleep(0.05)
    after = client.post("/v1/predict", files={"image": picture("cat")}).json()
    assert after["version"] == elsewhere.state.version.id != before["version"]
    assert after["predictions"][0]["class"] == "cat"
    assert next(serving.current().learner.network.backbone.parameters()).data_ptr() == weights  # not read again
    assert "sapwood_version_switches_total 1.0" in client.get("/metrics").text


def test_a_damaged_successor_leaves_the_old_version_answering(
    copied: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sapwood.serve.serving._EVERY", 0.05)
    client = serve(copied)
    version = client.post("/v1/predict", files={"image": picture("ant")}).json()["version"]
    (copied / "sapwood.json").write_text("not JSON")
    serving: Serving = client.app.state.serving  # type: ignore[attr-defined]
    deadline = time.monotonic() + 20
    while not serving._fault:
        assert time.monotonic() < deadline, "nobody looked"
        time.sleep(0.02)
    answer = client.post("/v1/predict", files={"image": picture("ant")})
    assert answer.status_code == 200
    assert answer.json()["version"] == version


def test_a_state_that_knows_nothing_says_so(tmp_path: Path, serve: Serve) -> None:
    Learner.create(tmp_path / "new", backbone="random:dinov2-tiny", method="ncm", image_size=28)
    client = serve(tmp_path / "new")
    assert client.get("/v1/state").json()["classes"] == []
    answer = client.post("/v1/predict", files={"image": picture("ant")})
    assert answer.status_code == 409
    assert "teach it" in answer.json()["detail"]


def test_alive_and_ready(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "alive"}
    client.post("/v1/predict", files={"image": picture("ant")})  # waits for the network
    ready = client.get("/readyz")
    assert ready.json() == {"status": "ready", "version": ready.headers["X-Sapwood-Version"]}


def test_while_the_network_loads_it_says_so(taught: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, before the upload; also when it cannot be loaded. A later try brings it up."""
    fill, tried, go_on, content = _filled, threading.Semaphore(0), threading.Semaphore(0), picture("ant")
    outcomes: list[Exception | None] = [SapwoodError("backbone x: no weights"), RuntimeError("out of memory"), None]

    def slow(learner: Learner) -> Snapshot:
        tried.release()
        go_on.acquire()
        if (fault := outcomes.pop(0)) is not None:
            raise fault
        return fill(learner)

    monkeypatch.setattr("sapwood.serve.serving._filled", slow)
    monkeypatch.setattr("sapwood.serve.serving._EVERY", 0.05)
    with TestClient(create_app(ServeSettings(taught)), base_url="http://127.0.0.1") as client:
        for words, loading in (("is being loaded", True), ("backbone x: no weights", False), ("out of memory", False)):
            assert tried.acquire(timeout=20)
            for answer in (client.post("/v1/predict", files={"image": content}), client.get("/readyz")):
                assert (answer.status_code, answer.json()["title"], answer.json()["loading"]) == (
                    503,
                    "Not ready",
                    loading,
                )
                assert words in answer.json()["detail"]
                assert int(answer.headers["Retry-After"]) > 0
            go_on.release()
        deadline = time.monotonic() + 20
        while client.get("/readyz").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert client.post("/v1/predict", files={"image": content}).status_code == 200


def test_metrics_count_what_was_answered(taught: Path, serve: Serve) -> None:
    client = serve(taught)
    files = [("image", picture("ant")), ("image", picture("bee"))]
    version = client.post("/v1/predict", files=files).json()["version"]
    client.get("/nowhere")
    values = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if not line.startswith("#"))
    assert float(values["sapwood_confidence_count"]) == 2
    assert sum(float(values[f'sapwood_predictions_total{{known="{known}"}}']) for known in ("yes", "no", "unsaid")) == 2
    assert float(values["sapwood_batch_pictures_sum"]) == 2
    assert float(values["sapwood_queue_pictures"]) == 0
    assert float(values['sapwood_request_seconds_count{method="POST",route="/v1/predict",status="200"}']) == 1
    assert float(values['sapwood_request_seconds_count{method="GET",route="other",status="404"}']) == 1
    assert any(f'version="{version}"' in name for name in values if name.startswith("sapwood_state_info"))


def test_the_interface_is_described_without_anything_from_elsewhere(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert {"/v1/predict", "/v1/state", "/v1/learn", "/v1/undo", "/healthz", "/readyz"} <= described["paths"].keys()
    page = client.get("/docs").text
    assert all(path in page for path in described["paths"] if "{" not in path)
    for text in (page, client.get("/docs/style.css").text):
        assert "http://" not in text
        assert "https://" not in text
        assert "<script" not in text
    assert "<style" not in page
    assert " style=" not in page


def test_pictures_are_seen_as_decoded_elsewhere(client: TestClient, taught: Path) -> None:
    """Turned by EXIF, on a transparent ground, larger than the view: what the library sees, the server sees."""
    upright = Image.fromarray(pixels("ant", 30, (96, 60)))
    turned, clear = io.BytesIO(), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.save(turned, "JPEG", exif=exif, quality=95)
    upright.convert("LA").save(clear, "PNG")
    assert decode(Picture("turned", turned.getvalue())).shape == (60, 96, 3)
    contents = [turned.getvalue(), clear.getvalue()]
    expected = [found.score for found in Learner.open(taught).predict(contents)]
    said = client.post("/v1/predict", files=[("image", content) for content in contents]).json()
    assert [found["score"] for found in said["predictions"]] == pytest.approx(expected, abs=1e-6)
