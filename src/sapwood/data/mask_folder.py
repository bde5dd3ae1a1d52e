"""Which picture in a folder has which mask."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path

from sapwood.data.files import folders_in, pictures_in
from sapwood.data.names import shown
from sapwood.data.pictures import Picture
from sapwood.errors import DataError

MASK_LAYOUT = "expected FOLDER/images/*, FOLDER/masks/*.png with the same stems, and FOLDER/classes.json"
_MASK_FOLDERS = ("masks", "labels")
_SALIENCY_FOLDER = "saliency"


def find_folders(folder: Path) -> tuple[Path | None, Path | None]:
    """The sub-folders ``images`` and ``masks`` (or ``labels``), in any letter case; None for one that is not there."""
    found = {child.name.casefold(): child for child in folders_in(folder)}
    return found.get("images"), next((found[name] for name in _MASK_FOLDERS if name in found), None)


def pairs_in(folder: Path) -> list[Picture]:
    """The pictures below ``images``, in natural order, each with its mask; nothing is decoded.

    If there is a folder ``saliency`` too, each picture has its map from there.

    Raises:
        DataError: a folder is missing or empty, two files have one stem, a picture has no mask (or no map, where
            there is a folder of them) or the reverse.
    """
    if not folder.is_dir():
        raise DataError(f"{shown(folder)}: is not a folder; {MASK_LAYOUT}")
    images, masks = find_folders(folder)
    if images is None or masks is None:
        raise DataError(f"{shown(folder)}: has no folder {'images' if images is None else 'masks'}; {MASK_LAYOUT}")
    files, partners = _by_stem(images), _by_stem(masks)
    for kind, there in ((images, files), (masks, partners)):
        if not there:
            raise DataError(f"{shown(kind)}: holds no {'pictures' if kind == images else 'masks'}; {MASK_LAYOUT}")
    _check_partners(folder, "mask", images, masks, files, partners)
    maps = _saliency_maps(folder, images, files)
    return [Picture(str(file), file, mask=partners[stem], saliency=maps.get(stem)) for stem, file in files.items()]


def _saliency_maps(folder: Path, images: Path, files: dict[str, Path]) -> dict[str, Path]:
    """The saliency map of each stem; none if there is no folder of them."""
    place = next((child for child in folders_in(folder) if child.name.casefold() == _SALIENCY_FOLDER), None)
    if place is None:
        return {}
    maps = _by_stem(place)
    _check_partners(folder, "saliency map", images, place, files, maps)
    return maps


def _by_stem(folder: Path) -> dict[str, Path]:
    """Files by their path below ``folder`` without suffix, in Unicode's composed form (macOS decomposes names)."""
    found: dict[str, Path] = {}
    for file in pictures_in(folder):
        stem = unicodedata.normalize("NFC", file.relative_to(folder).with_suffix("").as_posix())
        if stem in found:
            raise DataError(f"{shown(found[stem])} and {shown(file)} have the same stem; keep one of them")
        found[stem] = file
    return found


def _check_partners(
    folder: Path, what: str, images: Path, place: Path, files: dict[str, Path], partners: dict[str, Path]
) -> None:
    if strange := [file for file in partners.values() if file.suffix.lower() != ".png"]:
        raise DataError(f"{shown(strange[0])}: a {what} must be a PNG file; save it as one, or move it elsewhere")
    alone = [stem for stem in files if stem not in partners]
    spare = [stem for stem in partners if stem not in files]
    if not alone and not spare:
        return
    parts = []
    if alone:
        parts.append(f"{len(alone)} of {len(files)} pictures have no {what} ({few(alone, len(alone))})")
    if spare:
        parts.append(f"{len(spare)} of {len(partners)} {what}s have no picture ({few(spare, len(spare))})")
    longer = next((stem for stem in spare if alone and stem.startswith(alone[0])), None)
    hint = f"; '{shown(longer)}' is not '{shown(alone[0])}': take the suffix off" if longer else ""
    raise DataError(
        f"{shown(folder)}: {' and '.join(parts)}; stems must be equal, as in {images.name}/a.jpg and "
        f"{place.name}/a.png{hint}"
    )


def few(texts: Iterable[str], count: int, most: int = 5) -> str:
    """The first of ``count`` texts, and how many more there are."""
    first = [shown(text) for text, _ in zip(texts, range(most), strict=False)]
    return ", ".join(first) + (f" and {count - most} more" if count > most else "")
