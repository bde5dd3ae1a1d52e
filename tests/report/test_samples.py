"""Which pictures of the data a report shows."""

from __future__ import annotations

from sapwood.report.samples import evenly, spread


def test_samples_are_spread_over_the_classes() -> None:
    labels = ["many"] * 90 + ["few"] * 2 + ["some"] * 8
    chosen = [labels[index] for index in spread(labels, 9)]
    assert (chosen.count("few"), chosen.count("some")) in {(2, 3), (2, 4)}
    assert spread(labels, 9) == spread(labels, 9)
    assert len(spread(labels, 1000)) == 100


def test_masks_are_taken_all_along_the_data() -> None:
    assert evenly(24, 12) == list(range(1, 24, 2))
    assert evenly(3, 12) == [0, 1, 2]
    assert evenly(0, 12) == []
    steps = [later - earlier for earlier, later in zip(evenly(1000, 12), evenly(1000, 12)[1:], strict=False)]
    assert (min(steps), max(steps)) == (83, 84)
