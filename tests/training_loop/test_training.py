"""The training loop on real pictures: steps, schedules, checkpoints, signals, and what it may never see."""

from __future__ import annotations

import math
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sapwood.errors import Interrupted, SapwoodError
from sapwood.feeds import FeatureFeed, PictureFeed
from sapwood.kinds import KINDS
from sapwood.progress import Progress
from sapwood.rounds import learn_round
from sapwood.training import Stop, build_optimizer, schedule_factor, stop_on_signals

from .helpers import FAST, SIZE, Bench, Kept, store, with_, worst


def test_schedules() -> None:
    for kind in ("cosine", "poly", "constant"):
        factors = [schedule_factor(kind, step, 100, 0.1) for step in range(100)]
        assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
        assert factors[10] == 1
        assert factors[10:] == sorted(factors[10:], reverse=True)
    assert schedule_factor("poly", 55, 100, 0.1) == pytest.approx(0.5**0.9)
    assert schedule_factor("cosine", 55, 100, 0.1) == pytest.approx(0.5)
    assert schedule_factor("cosine", 0, 1, 0.0) == 1
    assert 0 < schedule_factor("cosine", 99, 100, 0.1) < 1e-2


def test_two_groups_and_no_decay_on_the_head() -> None:
    bench = Bench()
    bench.network.head.grow(2, torch.Generator().manual_seed(0))
    for optimizer in ("adamw", "sgd"):
        config = with_(optimizer=optimizer, lr=1e-3, head_lr=1e-2, weight_decay=0.3)
        body, head = build_optimizer(bench.network.trainable(), config).param_groups
        assert (body["lr"], body["weight_decay"], len(body["params"])) == (1e-3, 0.3, 8)
        assert (head["lr"], head["weight_decay"], len(head["params"])) == (1e-2, 0.0, 2)
    (only,) = build_optimizer(bench.network.trainable(adapt=False), with_(lr=1e-3)).param_groups
    assert only["lr"] == 1e-3


def test_learning_lowers_the_loss() -> None:
    facts = Bench().learn("abc", with_(epochs=6))
    losses = [row["loss"] for row in facts["log"]]
    assert [row["epoch"] for row in facts["log"]] == list(range(6))
    assert losses[-1] < 0.7 * losses[0]
    assert facts["validation_accuracy"] is None
    assert facts["trainable_parameters"] == sum(t.numel() for t in Bench().tensors().values()) + 3 * 33


@pytest.mark.parametrize("objective", ["finetune", "ewc", "lwf"])
def test_accumulated_batches_are_one_large_batch(objective: str) -> None:
    """Also for penalties on the parameters: they count once a step, whatever the number of batches."""
    settings = {"strength": 100.0, "fisher_batch": 1} if objective == "ewc" else {}
    results = []
    for changes in ({"batch_size": 8}, {"batch_size": 4, "accumulate": 2}):
        bench = Bench(objective=objective, **settings)
        config = with_(**changes, optimizer="sgd", lr=1e-2)
        bench.learn("abc", config)
        bench.learn("de", config)
        results.append(bench.tensors())
    assert worst(*results) < 1e-5
    other = Bench(objective=objective, **settings)
    other.learn("abc", with_(batch_size=4, optimizer="sgd", lr=1e-2))
    other.learn("de", with_(batch_size=4, optimizer="sgd", lr=1e-2))
    assert worst(results[0], other.tensors()) > 1e-4  # else this test could tell nothing


def test_workers_change_nothing() -> None:
    results = []
    for workers in (0, 2):
        bench = Bench()
        bench.learn("abc", with_(workers=workers, epochs=1))
        results.append(bench.tensors())
    assert worst(*results) == 0


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_goes_on_from_any_step(optimizer: str, accumulate: int) -> None:
    """15 pictures in batches of 4: the last batch is short, and with two a step so is the last step."""
    config = with_(optimizer=optimizer, accumulate=accumulate, warmup=0.2)
    whole = Bench()
    facts = whole.learn("abc", config)
    steps = math.ceil(4 / accumulate) * config.epochs
    for step in range(1, steps + 1):
        kept = Kept()
        with pytest.raises(Interrupted, match="the same command goes on from the last checkpoint"):
            Bench().learn("abc", config, kept, stop_after=step)
        assert kept.saves == 1
        again = Bench()
        resumed = again.learn("abc", config, kept)
        assert worst(whole.tensors(), again.tensors()) == 0, step
        assert resumed["log"] == facts["log"]


def test_frozen_features_go_on_too() -> None:
    config = with_(batch_size=4)
    whole = Bench("none")
    whole.learn("abc", config)
    for step in (1, 4, 8):
        kept = Kept()
        with pytest.raises(Interrupted):
            Bench("none").learn("abc", config, kept, stop_after=step)
        again = Bench("none")
        again.learn("abc", config, kept)
        assert worst(whole.tensors(), again.tensors()) == 0


def test_checkpoints_come_by_the_clock_and_at_the_end() -> None:
    kept = Kept()
    Bench().learn("abc", with_(checkpoint_seconds=1e-6), kept)
    assert kept.saves == 8
    kept = Kept()
    Bench().learn("abc", with_(checkpoint_seconds=1e6), kept)
    assert kept.saves == 1
    assert kept.found is not None
    assert kept.found[1]["position"]["step"] == 8


def test_a_loss_that_is_not_finite_says_what_to_do() -> None:
    with pytest.raises(SapwoodError, match=r"the loss became (nan|inf) at step \d.*--restart --lr 1e\+29") as caught:
        Bench().learn("abc", with_(lr=1e30, optimizer="sgd", warmup=0.0, epochs=4))
    assert "\n" not in str(caught.value)


def test_rows_of_absent_classes_do_not_move() -> None:
    bench = Bench()
    bench.learn("abc", FAST)
    before = bench.network.head.classifier.weight.detach().clone()
    bench.learn("bd", with_(weight_decay=0.5))
    after = bench.network.head.classifier.weight.detach()
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert not torch.equal(after[1], before[1])


def test_the_adapter_is_called_where_it_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    adapter, calls = bench.network.adapter, []
    for name in ("before_task", "after_step", "after_task"):
        monkeypatch.setattr(adapter, name, lambda *_, name=name: calls.append(name))
    monkeypatch.setattr(adapter, "penalty", lambda: calls.append("penalty"))
    bench.learn("abc", with_(accumulate=2, epochs=1))
    assert calls == ["before_task", *["penalty", "after_step"] * 2, "after_task"]


def test_training_sees_the_training_pictures_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the loss is computed on, by content: every training picture once an epoch, never a validation picture."""
    bench, config = Bench(), with_(validation=0.2, epochs=2)
    many = store("ab", 10)
    data = KINDS["classification"].prepare(many, (), 0, "first", 0, config.validation, SIZE)
    assert len(data.held) == 4
    seen: list[str] = []
    looked_at: list[str] = []
    forward = PictureFeed.forward

    def watched(feed: PictureFeed, model: Any, teacher: Any, batch: Any) -> Any:
        if torch.is_grad_enabled():
            seen.extend(feed.store.sha256[index] for index in batch.indices)
        else:
            looked_at.extend(feed.store.sha256[index] for index in batch.indices)
        return forward(feed, model, teacher, batch)

    monkeypatch.setattr(PictureFeed, "forward", watched)
    stop = Stop()
    learn_round(
        bench.network,
        bench.objective,
        data,
        config,
        Kept(),
        Progress(),
        stop,
    )
    assert sorted(seen) == sorted(2 * list(data.train.sha256))
    assert not set(seen) & set(data.held.sha256)
    assert sorted(looked_at) == sorted(data.held.sha256)  # once, between the two epochs


def test_features_are_computed_once_when_the_backbone_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench("none")
    count = 0
    tokens = bench.network.tokens

    def counting(images: Tensor) -> Any:
        nonlocal count
        count += len(images) * bool(images.any())  # a blank one counts operations
        return tokens(images)

    monkeypatch.setattr(bench.network, "tokens", counting)
    facts = bench.learn("ab", with_(epochs=3))
    assert count == 10
    assert len(facts["log"]) == 3
    assert isinstance(
        FeatureFeed(torch.zeros(10, 32), torch.zeros(10), 4, 0, 0).batches(0, 0).__next__().features, Tensor
    )


def test_first_signal_asks_the_second_interrupts() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        with pytest.raises(Interrupted):
            stop.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_other_threads_leave_signals_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    found: list[Any] = []

    def run() -> None:
        with stop_on_signals() as stop:
            found.extend([signal.getsignal(signal.SIGINT), stop.requested])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [before, False]


def test_paths_play_no_part(tmp_path: Path) -> None:
    one, two = Bench().round("abc", FAST), Bench().round("abc", FAST)
    assert one.digest() == two.digest()
    assert one.digest() != Bench().round("abd", FAST).digest()
    assert "path" not in one.manifest()[0]
