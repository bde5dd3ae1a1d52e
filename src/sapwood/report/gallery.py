"""Pictures beside what the model says of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sapwood.data.legend import BACKGROUND, IGNORE
from sapwood.data.palette import overlay
from sapwood.report.content import MaskSample, Sample
from sapwood.report.markup import Html, jpeg, percent, png, section, swatch, text

_ALPHA = 0.6  # of masks over their pictures
_STRIPE = 6  # pixels from one line of the hatching to the next


def samples(shown: Sequence[Sample]) -> str:
    """The section of pictures with the names of their classes; nothing if there are none."""
    if not shown:
        return ""
    known = [sample for sample in shown if sample.true is not None]
    right = sum(sample.true == sample.predicted for sample in known)
    summary = f'<p class="note">{right} of these {len(known)} are right.</p>\n' if known else ""
    items = "".join(map(_sample, shown))
    return section("Sample predictions", summary, f'<ul class="samples">\n{items}</ul>\n')


def _sample(sample: Sample) -> str:
    if sample.true is None:
        kind, verdict = "open", "true class not known"
    elif sample.true == sample.predicted:
        kind, verdict = "right", '<span aria-hidden="true">✓</span> right'
    else:
        kind, verdict = "wrong", f'<span aria-hidden="true">✗</span> wrong, it is <b>{text(sample.true)}</b>'
    small = ' class="small"' if max(sample.image.shape[:2]) < 80 else ""
    image = f'<img src="{png(sample.image)}"{small} alt="{text(sample.name or "picture")}">'
    told = f"<p><b>{text(sample.predicted)}</b> {percent(sample.score, 0)} %</p><p>{verdict}</p>"
    return f'<li class="{kind}">{image}{told}{_path(sample.name)}</li>\n'


def masks(shown: Sequence[MaskSample], classes: Sequence[str]) -> str:
    """The section of pictures with true and predicted masks, and the legend of their colours; nothing if none."""
    if not shown:
        return ""
    found = np.unique(np.concatenate([mask.reshape(-1) for each in shown for mask in (each.truth, each.predicted)]))
    entries = [
        f"{swatch(classes, classes[value - 1])} {text(classes[value - 1])}" for value in found if 0 < value < IGNORE
    ]
    entries.append(f"{swatch((), BACKGROUND)} no colour: {BACKGROUND}")
    if found[-1] == IGNORE:
        entries.append(
            '<span class="swatch hatched"></span> hatched: does not count (ignored, or a class not known yet)'
        )
    legend = "".join(f"<li>{entry}</li>" for entry in entries)
    items = "".join(_masks(sample, classes) for sample in shown)
    return section("Sample masks", f'<ul class="legend">{legend}</ul>\n', f'<ul class="scenes">\n{items}</ul>\n')


def _masks(sample: MaskSample, classes: Sequence[str]) -> str:
    views = (
        ("picture", sample.image, sample.name or "picture"),
        ("truth", _painted(sample.image, sample.truth), f"truth: {_shares(sample.truth, classes)}"),
        ("prediction", _painted(sample.image, sample.predicted), f"prediction: {_shares(sample.predicted, classes)}"),
    )
    small = ' class="small"' if max(sample.image.shape[:2]) < 80 else ""
    figures = "".join(
        f'<figure><img src="{jpeg(image)}"{small} alt="{text(words)}"><figcaption>{title}</figcaption></figure>'
        for title, image, words in views
    )
    right = "" if sample.right is None else f"<p>{percent(sample.right, 0)} % of its pixels are right</p>"
    return f"<li>{figures}<div>{right}{_path(sample.name)}</div></li>\n"


def _painted(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A mask over its picture: classes in their colours over grey, edges white, hatched what does not count."""
    grey = np.rint(image @ np.array([0.299, 0.587, 0.114]) / 2 + 64).astype(np.uint8)  # pale, so that colours stay
    painted = overlay(np.repeat(grey[..., None], 3, axis=2), mask, _ALPHA)
    painted[mask == 0] = image[mask == 0]
    ignored = mask == IGNORE
    painted[ignored] = painted[ignored] // 2 + 96
    rows, columns = np.indices(mask.shape)
    painted[ignored & ((rows + columns) % _STRIPE < 2)] = 255
    painted[1:][mask[1:] != mask[:-1]] = 255  # the palette's greys would be lost in a picture without their edges
    painted[:, 1:][mask[:, 1:] != mask[:, :-1]] = 255
    return painted


def _shares(mask: np.ndarray, classes: Sequence[str]) -> str:
    """What a mask shows in words, for who cannot see its colours."""
    counts = np.bincount(mask.reshape(-1), minlength=IGNORE + 1)
    named = [(int(counts[1 + index]), name) for index, name in enumerate(classes) if counts[1 + index]]
    parts = [f"{name} {count / mask.size:.0%}" for count, name in sorted(named, key=lambda pair: -pair[0])]
    return ", ".join(parts) or BACKGROUND


def _path(name: str) -> Html:
    return Html(f'<span class="path">{text(name)}</span>' if name else "")
