"""``sapwood cost``: the numbers for machines, the sums for people, and lines that cannot be counted."""

from __future__ import annotations

import pytest

from .conftest import Run, World

SAM = ("--backbone", "sam-vit-large", "--image-size", "512", "--rank", "4", "--classes", "21")
TINY = ("--backbone", "random:dinov2-tiny", "--image-size", "28x42", "--rank", "2", "--classes", "3")
KEYS = {"parameters", "trainable_parameters", "gmacs", "gmacs_merged", "bytes_per_task", "netscore"}


def test_json_of_the_papers_network(sapwood: Run) -> None:
    done = sapwood("cost", *SAM, "--accuracy", "70.39", "--json")
    assert (done.code, done.err) == (0, "")
    assert set(done.json) == KEYS
    assert (done.json["parameters"], done.json["trainable_parameters"]) == (305_170_965, 464_405)
    assert (round(done.json["gmacs_merged"], 3), round(done.json["gmacs"], 3)) == (397.095, 397.740)
    assert done.json["bytes_per_task"] == 4 * 464_405
    assert done.json["netscore"] == pytest.approx(51.24, abs=0.005)


def test_the_sums_for_people(sapwood: Run) -> None:
    done = sapwood("cost", *TINY, "--accuracy", "50")
    lines = done.out.splitlines()
    assert lines[0] == "CLoRA on random:dinov2-tiny, one picture of 28 x 42 px"
    row = {line.split("  ")[0]: line for line in lines[2:]}
    assert "adapter 0.001 M + decoder 0.001 M + classifiers 0.000 M" in row["trained or solved"]
    assert " 1,667  " in row["trained or solved"]
    assert "at 50 %" in row["NetScore"]
    assert "NetScore" not in sapwood("cost", *TINY).out
    plain, bare = (sapwood("cost", *TINY, "--decoder", each, "--json").json for each in ("conv1x1", "none"))
    assert plain == sapwood("cost", *TINY, "--json").json
    assert plain["parameters"] - bare["parameters"] == 32 * (32 + 1)
    assert sapwood("cost", *TINY, "--json").json["netscore"] is None


def test_of_a_state(sapwood: Run, world: World) -> None:
    done = sapwood("cost", world.state, "--json")
    # ncm on a frozen encoder of 32 features: three class means, and the encoder's own parameters.
    assert done.json["trainable_parameters"] == 3 * 32
    assert done.json["gmacs"] == done.json["gmacs_merged"] > 0
    text = sapwood("cost", world.state, "--accuracy", "90").out
    assert text.startswith(f"{world.state} after its last round, one picture of 28 x 28 px")
    assert "trained or solved" in text


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ((), "name a state folder or --backbone, one of them"),
        (("state", "--backbone", "vit-base"), "name a state folder or --backbone, one of them"),
        (("state", "--rank", "3", "--classes", "2"), "has its own size, rank, classes and decoder; leave --rank, --cl"),
        (("--backbone", "vit-base", "--accuracy", "101"), "--accuracy is in per cent, 0..100, got 101"),
        (("--backbone", "vit-base", "--image-size", "12by5"), "--image-size '12by5'"),
        (("--backbone", "vit-base", "--image-size", "225"), "multiple of vit-base's patch of 16 px, got 225; try 224"),
        (("--backbone", "sam-vit-base", "--image-size", "32x48"), "must be square for sam-vit-base"),
        (("--backbone", "vit-bas"), "Did you mean 'vit-base'"),
        (("--backbone", "random:vit-tiny", "--rank", "0"), "adapter.rank must be >= 1"),
        (("--backbone", "random:vit-tiny", "--classes", "0"), "classes must be >= 1"),
        (
            ("--backbone", "random:vit-tiny", "--decoder", "conv5x5"),
            "head.decoder must be one of none, conv1x1, conv3x3",
        ),
        (("no-such-state",), "no-such-state"),
    ],
)
def test_what_cannot_be_counted(line: tuple[str, ...], says: str, sapwood: Run) -> None:
    done = sapwood("cost", *line)
    assert (done.code, done.out) == (2, "")
    assert says in done.err
    assert done.err.count("\n") == 1
