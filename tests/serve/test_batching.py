from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from sapwood.serve.batching import Batcher
from sapwood.serve.problems import Problem
from sapwood.serve.serving import Question, Serving
from sapwood.serve.settings import ServeSettings
from sapwood.serve.telemetry import Metrics

from .samples import picture, pixels, scene
from .servers import serving

Numbers = Sequence[Sequence[int]]


class Recorder:
    """Doubles numbers; remembers which came together, and waits where it is told to."""

    def __init__(self) -> None:
        self.calls: list[list[Sequence[int]]] = []
        self.threads: set[int] = set()
        self.free = threading.Event()
        self.free.set()

    def __call__(self, questions: Numbers) -> list[list[int]]:
        self.calls.append(list(questions))
        self.threads.add(threading.get_ident())
        self.free.wait(10)
        if any(-1 in question for question in questions):
            raise ValueError("cannot double this")
        return [[2 * number for number in question] for question in questions]


Batching = Batcher[Sequence[int], list[int]]


def run(body: Callable[[Batching, Recorder], Awaitable[Any]], **options: Any) -> Recorder:
    recorder = Recorder()

    async def whole() -> None:
        settings: dict[str, Any] = {"batch": 4, "window": 0.05, "most": 8, "metrics": Metrics()}
        batcher: Batching = Batcher(recorder, **(settings | options))
        batcher.start()
        try:
            await body(batcher, recorder)
        finally:
            recorder.free.set()
            await batcher.stop()

    asyncio.run(whole())
    return recorder


def test_what_comes_together_is_answered_together() -> None:
    async def body(batcher: Batching, recorder: Recorder) -> None:
        asked = [batcher.ask([number], 1, 5) for number in range(4)]
        assert await asyncio.gather(*asked) == [[0], [2], [4], [6]]

    recorder = run(body, window=10)  # the batch is full, so nobody waits for the window to end
    assert recorder.calls == [[[0], [1], [2], [3]]]
    assert threading.get_ident() not in recorder.threads


def test_questions_are_never_split_and_keep_their_order() -> None:
    async def body(batcher: Batching, recorder: Recorder) -> None:
        sizes = [3, 2, 2, 6]
        answers = await asyncio.gather(*(batcher.ask([size] * size, size, 5) for size in sizes))
        assert answers == [[2 * size] * size for size in sizes]

    recorder = run(body, most=20)
    assert recorder.calls == [[[3] * 3], [[2] * 2, [2] * 2], [[6] * 6]]


def test_a_question_that_fails_takes_no_other_down() -> None:
    async def body(batcher: Batching, recorder: Recorder) -> None:
        asked = (batcher.ask([number], 1, 5) for number in (1, -1, 3))
        first, bad, third = await asyncio.gather(*asked, return_exceptions=True)
        assert [first, third] == [[2], [6]]
        assert isinstance(bad, ValueError)
        assert await batcher.ask([4], 1, 5) == [8]

    run(body)


def test_too_many_and_too_slow() -> None:
    async def body(batcher: Batching, recorder: Recorder) -> None:
        recorder.free.clear()
        held = asyncio.create_task(batcher.ask([0] * 4, 4, 5))
        while not recorder.calls:
            await asyncio.sleep(0.001)
        waiting = [asyncio.create_task(batcher.ask([n] * 4, 4, 0.2)) for n in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(Problem) as full:
            await batcher.ask([9], 1, 5)
        assert full.value.status == 429
        assert full.value.headers["Retry-After"] == "1"
        for slow in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(slow, Problem)
            assert slow.status == 503
        again = asyncio.create_task(batcher.ask([3], 1, 5))  # those who gave up leave the queue
        recorder.free.set()
        assert await held == [0] * 4
        assert await again == [6]

    assert run(body).calls == [[[0] * 4], [[3]]]


def test_a_prediction_does_not_depend_on_the_batch(taught: Path, drawing: Path) -> None:
    for state, size in ((taught, (35, 35)), (drawing, (28, 42))):
        opened = Serving(ServeSettings(state), Metrics())
        images = [pixels(name, index, size) for index, name in enumerate(("ant", "bee", "cat", "ground", "ant"))]
        asked = [Question(images[:1], 1), Question(images[1:3], 2), Question(images[3:], 2)]
        alone = iter(opened.answer([Question([image], 2)])[0].predictions[0] for image in images)
        for question, answer in zip(asked, opened.answer(asked), strict=True):
            for _, one in zip(question.pictures, answer.predictions, strict=True):
                other = next(alone)
                if state is drawing:
                    assert (one.mask == other.mask).all()
                else:
                    assert one.label == other.label
                    assert one.score == pytest.approx(other.score, abs=1e-6)


def test_some_want_tiles_and_others_do_not(drawing: Path) -> None:
    opened = Serving(ServeSettings(drawing), Metrics())
    images = [scene(index, (84, 126))[0] for index in range(4)]
    asked = [Question([image], 1, tile=index in (0, 3)) for index, image in enumerate(images)]
    for question, answer in zip(asked, opened.answer(asked), strict=True):
        (expected,) = opened.answer([question])[0].predictions
        (other,) = opened.answer([Question(question.pictures, 1, not question.tile)])[0].predictions
        (found,) = answer.predictions
        assert (found.mask == expected.mask).all()
        assert (found.mask != other.mask).any()


def test_who_asks_at_the_same_time_gets_the_own_answer(taught: Path) -> None:
    """Over sockets: requests of one to three pictures each, which go through the network together."""

    def one(number: int) -> list[tuple[str, str]]:
        names = [("ant", "bee")[(number >> place) % 2] for place in range(number % 3 + 1)]
        files = [("image", (f"{name} {number}", picture(name, number, 20))) for name in names]
        answer = client.post("/v1/predict", files=files).json()
        assert [found["name"] for found in answer["predictions"]] == [name for _, (name, _) in files]
        return [(found["class"], name) for found, name in zip(answer["predictions"], names, strict=True)]

    with (
        serving(taught, window=0.5) as served,
        httpx.Client(base_url=served.address, timeout=60, verify=False) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        served.app.state.serving.load()
        told = [pair for pairs in pool.map(one, range(16)) for pair in pairs]
        samples = {sample.name: sample.value for sample in served.app.state.metrics.batch_pictures.collect()[0].samples}
    assert set(told) == {("ant", "ant"), ("bee", "bee")}
    assert samples["sapwood_batch_pictures_sum"] == len(told)
    assert samples["sapwood_batch_pictures_count"] <= 10
