"""Pictures with masks: a folder of both, and one mask's values."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
from PIL import Image

from sapwood.data.decode import DEFAULT_PIXEL_LIMIT, open_image, read_content
from sapwood.data.legend import Legend
from sapwood.data.legend_file import read_legend
from sapwood.data.mask_folder import MASK_LAYOUT, few, find_folders, pairs_in
from sapwood.data.names import shown
from sapwood.data.pictures import Picture, Pictures
from sapwood.data.sources import chosen_split, existing, split_folders, usual_split
from sapwood.errors import ConfigError, DataError

Unlabelled = Literal["background", "ignore"]
_VALUES = ("1", "L", "P")  # modes of Pillow whose pixels are values


class MaskedPictures(Pictures):
    """Pictures with masks, and the legend that says what the values in the masks mean.

    ``classes`` are the legend's, whether or not a mask holds them.
    """

    def __init__(self, pictures: Iterable[Picture], legend: Legend) -> None:
        super().__init__(pictures)
        self.legend = legend

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of the legend, in the order of their values."""
        return self.legend.classes

    def relabelled(self, legend: Legend) -> MaskedPictures:
        """The same pictures and masks, whose values now mean what ``legend`` says."""
        return MaskedPictures(self, legend)

    def of(self, classes: Iterable[str]) -> Self:
        """Refused: what a mask holds is known once it is decoded (``MaskStore.counts``)."""
        raise DataError("pictures with masks cannot be chosen by class before their masks are decoded")

    def _with(self, pictures: Iterable[Picture]) -> Self:
        return type(self)(pictures, self.legend)

    def __add__(self, other: Pictures) -> MaskedPictures:
        if not isinstance(other, MaskedPictures) or other.legend != self.legend:
            raise DataError("pictures with masks can be joined only with others of the same legend")
        return MaskedPictures((*self, *other), self.legend)

    __radd__ = __add__  # else Pictures() + these would lose the legend


def read_masks(data: str | Path | MaskedPictures, *, unlabelled: Unlabelled = "background") -> MaskedPictures:
    """Pictures with masks; nothing is decoded yet.

    Args:
        data: a folder with ``images/`` (pictures at any depth), ``masks/`` or ``labels/`` (PNG files of the same
            stems), perhaps ``saliency/`` (the same, see ``read_saliency``) and ``classes.json`` or ``classes.txt``
            (``read_legend``); or a folder whose only folders are named
            train, val and test, each laid out so (``classes`` there or beside them): its train part; or
            ``MaskedPictures``.
        unlabelled: ``ignore`` turns the legend's background into ignored: what is not labelled may be anything.

    Raises:
        DataError: there is no such folder, it holds no pictures or no masks, a picture has no mask or the reverse,
            the classes file is missing or wrong; some pictures have a saliency map and others have none.
    """
    if isinstance(data, MaskedPictures):
        return _labelled(data, unlabelled)
    path = existing(data)
    splits = split_folders(path) if path.is_dir() else {}
    if splits:
        return _labelled(_read(chosen_split(splits, "train", path), path), unlabelled)
    return _labelled(_read(path), unlabelled)


def read_mask_split(data: str | Path, split: str, *, unlabelled: Unlabelled = "background") -> MaskedPictures:
    """One part (``train``, ``val`` or ``test``) of a folder that comes in parts, as ``read_masks`` reads it.

    Raises:
        DataError: the folder has no parts, or not this one; and what ``read_masks`` raises.
    """
    path, usual = existing(data), usual_split(split)
    splits = split_folders(path) if path.is_dir() else {}
    if not splits:
        raise DataError(f"{shown(path)}: has no parts; expected {shown(path)}/train and {shown(path)}/{split}")
    return _labelled(_read(chosen_split(splits, usual, path), path), unlabelled)


def is_mask_data(data: Any) -> bool:
    """Whether ``data`` is pictures with masks: ``MaskedPictures``, or a folder (or its parts) laid out as such."""
    if isinstance(data, MaskedPictures):
        return True
    if not isinstance(data, str | Path) or not str(data):
        return False
    try:
        path = existing(data)
        folders = [path, *split_folders(path).values()] if path.is_dir() else []
        return any(None not in find_folders(folder) for folder in folders)
    except DataError:
        return False


def decode_mask(picture: Picture, legend: Legend, *, size: tuple[int, int] | None) -> np.ndarray:
    """The values of a picture's mask, at the mask's own resolution.

    A grey mask of up to 8 bits and a palette mask mean their values and indices; a colour mask means the values of
    its colours in the legend, and so does a palette mask if the legend was given by colour.

    Args:
        picture: with a mask.
        legend: what the values mean.
        size: (H, W) of the upright picture, with which the mask must agree; None does not look.

    Returns:
        uint8 [H, W].

    Raises:
        DataError: no mask, unreadable, of another size, of more than 8 bits, colours without a colour table, a value
            or colour that the legend lacks; the message names the mask's file.
    """
    return read_mask(picture, legend, size=size).values


class ReadMask(NamedTuple):
    """What one read of a mask gives."""

    values: np.ndarray  # uint8 [H, W]
    counts: np.ndarray  # int64 [256], pixels of each value
    sha256: str


def read_mask(picture: Picture, legend: Legend, *, size: tuple[int, int] | None) -> ReadMask:
    """``decode_mask`` with the pixels of each value and the sha256 of the mask's bytes."""
    name = mask_name(picture)
    if picture.mask is None:
        raise DataError(f"{shown(picture.name)}: has no mask; {MASK_LAYOUT}")
    if isinstance(picture.mask, np.ndarray):
        if picture.mask.dtype != np.uint8 or picture.mask.ndim != 2 or 0 in picture.mask.shape:
            given = f"{picture.mask.dtype} {list(picture.mask.shape)}"
            raise DataError(f"{shown(name)}: a mask in memory must be uint8 [H, W], got {given}")
        values = np.ascontiguousarray(picture.mask)
        digest = hashlib.sha256(f"{values.shape}".encode() + values.tobytes())
    else:
        content = read_content(Picture(name, picture.mask))
        if not isinstance(content, bytes):
            raise DataError(f"{shown(name)}: a mask in memory must be uint8 [H, W], got {type(content).__name__}")
        values, digest = _values(content, legend, size, shown(name)), hashlib.sha256(content)
    _check_size(values.shape, size, shown(name))
    counts = np.bincount(values.reshape(-1), minlength=256)
    unknown = np.flatnonzero((counts > 0) & ~legend.known_values())
    if len(unknown):
        raise DataError(
            f"{shown(name)}: holds the value{'s' if len(unknown) > 1 else ''} {few(map(str, unknown), len(unknown))}, "
            f"which no class has (known: {few(map(str, legend.names), len(legend.names), 12)} and 255 for ignored); "
            "add them to classes.json, or mend the mask"
        )
    return ReadMask(values, counts, digest.hexdigest())


class ReadSaliency(NamedTuple):
    """What one read of a saliency map gives."""

    values: np.ndarray  # uint8 [H, W]
    sha256: str


def read_saliency(picture: Picture, *, size: tuple[int, int] | None) -> ReadSaliency:
    """A picture's saliency map, from a grey or palette PNG of up to 8 bits: above 0 is where something stands out.

    Args:
        picture: with a saliency map.
        size: (H, W) of the upright picture, with which the map must agree; None does not look.

    Raises:
        DataError: no map, unreadable, of another size, of more than 8 bits, of colours; the message names its file.
    """
    if picture.saliency is None:
        raise DataError(
            f"{shown(picture.name)}: has no saliency map, but other pictures have one; give each of them one, as in "
            "saliency/a.png for images/a.jpg, or take the folder saliency away"
        )
    name = str(picture.saliency)
    content = read_content(Picture(name, picture.saliency))
    assert isinstance(content, bytes)
    image = _opened(content, size, shown(name), "saliency map")
    if image.mode not in _VALUES:
        raise DataError(f"{shown(name)}: is a picture of mode {image.mode}, not a saliency map; save it as grey PNG")
    values = np.array(image, dtype=np.uint8)
    _check_size(values.shape, size, shown(name), "saliency map")
    return ReadSaliency(values, hashlib.sha256(content).hexdigest())


def mask_name(picture: Picture) -> str:
    """What messages call a picture's mask: its path, or whose it is."""
    return str(picture.mask) if isinstance(picture.mask, Path) else f"mask of {picture.name}"


def _check_size(shape: tuple[int, ...], size: tuple[int, int] | None, name: str, what: str = "mask") -> None:
    if size is None or shape == size:
        return
    turned = ", once turned upright as its EXIF says" if shape == size[::-1] else ""
    raise DataError(
        f"{name}: is {shape[1]} x {shape[0]} pixels, but its picture is {size[1]} x {size[0]}{turned}; "
        f"a {what} must be of its picture's size"
    )


def _opened(content: bytes, size: tuple[int, int] | None, name: str, what: str) -> Image.Image:
    """The decoded picture of a mask or map of up to 8 bits a pixel."""
    try:
        image = open_image(content, name)
        if image.width * image.height > DEFAULT_PIXEL_LIMIT:
            raise DataError(f"{name}: has more than {DEFAULT_PIXEL_LIMIT:,} pixels; make it and its picture smaller")
        _check_size((image.height, image.width), size, name, what)  # before a huge one is decoded
        deep_png = content[:8] == b"\x89PNG\r\n\x1a\n" and content[24] == 16  # of colours Pillow drops 8 bits unasked
        if deep_png or image.mode.startswith(("I", "F")):
            raise DataError(f"{name}: has more than 8 bits a pixel; save the {what} with 8 bits, values 0 to 255")
        image.load()
        return image
    except DataError:
        raise
    except Exception as error:  # decoders raise whatever their C code or parser meets in a broken file
        raise DataError(f"{name}: cannot be decoded ({shown(error) or type(error).__name__}); replace it") from error


def _values(content: bytes, legend: Legend, size: tuple[int, int] | None, name: str) -> np.ndarray:
    image = _opened(content, size, name, "mask")
    if image.mode in ("LA", "RGBA"):
        if image.getextrema()[-1] != (255, 255):
            raise DataError(f"{name}: has transparent pixels, which mean nothing; save the mask without transparency")
        image = image.convert(image.mode[:-1])
    if image.mode in _VALUES and not legend.by_colour:
        return np.array(image, dtype=np.uint8)
    if image.mode not in (*_VALUES, "RGB"):
        raise DataError(f"{name}: is a picture of mode {image.mode}, not a mask; save it as grey or palette PNG")
    return _from_colours(image, legend, name)


def _from_colours(image: Image.Image, legend: Legend, name: str) -> np.ndarray:
    if legend.colours is None:
        raise DataError(
            f"{name}: is a colour picture, and no table says what its colours mean; write colour to name, as in "
            '{"#ff0000": "road"}, to classes.json, or save the mask as grey or palette PNG'
        )
    rgb = np.asarray(image.convert("RGB")).astype(np.uint32)
    codes = rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
    present, where = np.unique(codes, return_inverse=True)
    known = {red << 16 | green << 8 | blue: value for (red, green, blue), value in legend.colours.items()}
    strange = [f"#{code:06x}" for code in present.tolist() if code not in known]
    if strange:
        raise DataError(
            f"{name}: holds colours that no class has: {few(strange, len(strange))}; add them to classes.json, or "
            "save the mask without smoothing and not as JPEG"
        )
    values = np.array([known[code] for code in present.tolist()], np.uint8)
    return values[where].reshape(codes.shape)


def _read(folder: Path, *above: Path) -> MaskedPictures:
    pictures = pairs_in(folder)
    return MaskedPictures(pictures, read_legend(folder, *above))


def _labelled(pictures: MaskedPictures, unlabelled: Unlabelled) -> MaskedPictures:
    if unlabelled not in get_args(Unlabelled):
        raise ConfigError(f"unlabelled must be {' or '.join(get_args(Unlabelled))}, got {unlabelled!r}")
    return pictures if unlabelled == "background" else pictures.relabelled(pictures.legend.without_background())
