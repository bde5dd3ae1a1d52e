"""Requests that come at the same time go through the network together, in the one thread that computes."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from sapwood.serve.problems import Problem
from sapwood.serve.telemetry import Metrics

Question = TypeVar("Question")
Answer = TypeVar("Answer")


@dataclass(eq=False)
class _Waiting(Generic[Question, Answer]):
    question: Question
    size: int
    answer: asyncio.Future[Answer]


class Batcher(Generic[Question, Answer]):
    """Collects questions for a moment, and answers as many of them together as fit.

    The pictures of one question stay together, so that one version answers all of them; a question that fails takes
    no other down with it.

    Args:
        answer: called in a thread with some questions; gives as many answers. Never called twice at a time.
        batch: pictures that are answered together; a larger question goes alone.
        window: seconds that the first of them waits for others.
        most: pictures that may wait.
        metrics: told what happens.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Question]], Sequence[Answer]],
        *,
        batch: int,
        window: float,
        most: int,
        metrics: Metrics,
    ) -> None:
        self._answer, self._batch, self._window, self._most, self._metrics = answer, batch, window, most, metrics
        self._queue: deque[_Waiting[Question, Answer]] = deque()
        self._pictures = 0
        self._some = asyncio.Event()
        self._full = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="network")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to answer; in the event loop."""
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Answer nothing any more."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        for waiting in self._queue:
            waiting.answer.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def ask(self, question: Question, size: int, seconds: float) -> Answer:
        """The answer to a question of ``size`` pictures.

        Raises:
            Problem: 429 there are too many before it, 503 it took longer than ``seconds``.
        """
        if self._pictures + size > self._most:
            raise Problem(
                429,
                "Too many waiting",
                f"{self._pictures} pictures wait already and {self._most} may; try again in a moment",
                headers={"Retry-After": "1"},
            )
        waiting: _Waiting[Question, Answer] = _Waiting(question, size, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._count(size)
        try:
            return await asyncio.wait_for(waiting.answer, seconds)
        except TimeoutError:
            raise Problem(
                503,
                "Took too long",
                f"no answer within {seconds:g} s; send fewer pictures, or try again later",
            ) from None
        finally:
            with suppress(ValueError):  # it was taken out to be answered
                self._queue.remove(waiting)
                self._count(-size)

    def _count(self, change: int) -> None:
        self._pictures += change
        self._metrics.queue.set(self._pictures)
        for event, there in ((self._some, self._pictures > 0), (self._full, self._pictures >= self._batch)):
            if there:
                event.set()
            else:
                event.clear()

    def _take(self) -> list[_Waiting[Question, Answer]]:
        taken: list[_Waiting[Question, Answer]] = []
        size = 0
        while self._queue and (not taken or size + self._queue[0].size <= self._batch):
            taken.append(self._queue.popleft())
            size += taken[-1].size
        self._count(-size)
        return taken

    async def _work(self) -> None:
        while True:
            await self._some.wait()
            if self._window:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._full.wait(), self._window)
            taken = self._take()
            if taken:
                self._metrics.batch_pictures.observe(sum(waiting.size for waiting in taken))
                await self._run(taken)

    async def _run(self, taken: list[_Waiting[Question, Answer]]) -> None:
        started = time.perf_counter()
        try:
            questions = [waiting.question for waiting in taken]
            answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, questions)
        except Exception as error:
            if len(taken) > 1:
                for waiting in taken:
                    await self._run([waiting])
            elif not taken[0].answer.done():
                taken[0].answer.set_exception(error)
            return
        self._metrics.batches.observe(time.perf_counter() - started)
        for waiting, answer in zip(taken, answers, strict=True):
            if not waiting.answer.done():  # whoever asked may have gone
                waiting.answer.set_result(answer)
