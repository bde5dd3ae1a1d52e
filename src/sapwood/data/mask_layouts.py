"""How the data sets of the segmentation benchmarks lie on disk, as their authors ship them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from sapwood.data.legend import BACKGROUND, Legend
from sapwood.data.masks import MaskedPictures, read_mask_split
from sapwood.data.names import shown
from sapwood.data.pictures import Picture
from sapwood.data.streams import data_folder, data_root
from sapwood.errors import DataError

# fmt: off
VOC = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
_CITYSCAPES_IDS = {  # label ids of the 19 classes that are evaluated; the other ids up to 33 are ignored
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}
CAMVID = (
    "Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist",
)
# fmt: on
CITYSCAPES = tuple(_CITYSCAPES_IDS.values())
CONDITIONS = ("fog", "night", "rain", "snow")

VOC_FILES = (
    "VOCdevkit/VOC2012 with JPEGImages, SegmentationClassAug and ImageSets/Segmentation/train_aug.txt and val.txt"
)
ADE_FILES = "ADEChallengeData2016 with images/{training,validation} and annotations/{training,validation}"
CITYSCAPES_FILES = "cityscapes with leftImg8bit/{train,val} and gtFine/{train,val} (*_gtFine_labelIds.png)"
ACDC_FILES = "acdc with rgb_anon/{fog,night,rain,snow}/{train,val} and gt/… (*_gt_labelIds.png)"
CAMVID_FILES = "camvid with {train,test}/images, {train,test}/labels and classes.json"

_CITYSCAPES_FOLDERS = ("cityscapes", "Cityscapes")
_VOC_LISTS = ("train_aug.txt", "trainaug.txt")


class Parts(NamedTuple):
    """Training and test pictures of a data set."""

    train: MaskedPictures
    test: MaskedPictures


@cache
def ade_classes() -> tuple[str, ...]:
    """The 150 classes of ADE20K's scene parsing challenge, in the order of their values 1 to 150."""
    return tuple((files("sapwood.data") / "ade20k.txt").read_text("utf-8").splitlines())


def voc(data: Path | None, name: str) -> Parts:
    """PASCAL VOC 2012 with the masks of SBD (10,582 training and 1,449 validation pictures); 255 is ignored."""
    lists = "ImageSets/Segmentation"
    wanted = ("JPEGImages", "SegmentationClassAug", f"{lists}/val.txt")
    root = data_folder(data, ("VOCdevkit/VOC2012", "VOC2012"), wanted, name)
    train = next((root / lists / file for file in _VOC_LISTS if (root / lists / file).is_file()), None)
    if train is None:
        raise DataError(f"{name}: {shown(root / lists)} has no {' and no '.join(_VOC_LISTS)}")
    legend = Legend({0: BACKGROUND, **dict(enumerate(VOC, 1))})

    def part(listed: Path) -> MaskedPictures:
        # Either one name a line, or the paths of picture and mask.
        stems = [Path(line.split()[0]).stem for line in listed.read_text("utf-8").splitlines() if line.strip()]
        pairs = [(root / "JPEGImages" / f"{stem}.jpg", root / "SegmentationClassAug" / f"{stem}.png") for stem in stems]
        return _paired(pairs, legend, name, root)

    return Parts(part(train), part(root / lists / "val.txt"))


def ade(data: Path | None, name: str) -> Parts:
    """ADE20K's scene parsing challenge (20,210 and 2,000 pictures); 0 is what bears none of the 150 names."""
    wanted = [f"{kind}/{part}" for kind in ("images", "annotations") for part in ("training", "validation")]
    root = data_folder(data, ("ADEChallengeData2016",), wanted, name)
    legend = Legend({0: BACKGROUND, **dict(enumerate(ade_classes(), 1))})

    def part(folder: str) -> MaskedPictures:
        pictures = sorted((root / "images" / folder).glob("*.jpg"))
        pairs = [(file, root / "annotations" / folder / f"{file.stem}.png") for file in pictures]
        return _paired(pairs, legend, name, root / "images" / folder)

    return Parts(part("training"), part("validation"))


def cityscapes(data: Path | None, name: str) -> Parts:
    """Cityscapes (2,975 and 500 pictures), its 19 evaluated classes; everything else is ignored."""
    wanted = [f"{kind}/{part}" for kind in ("leftImg8bit", "gtFine") for part in ("train", "val")]
    root = data_folder(data, _CITYSCAPES_FOLDERS, wanted, name)
    train, test = (
        _street(root, f"leftImg8bit/{part}", "_leftImg8bit.png", f"gtFine/{part}", "_gtFine_labelIds.png", name)
        for part in ("train", "val")
    )
    return Parts(train, test)


def has_cityscapes(data: Path | None) -> bool:
    """Whether the folder of data sets has one for Cityscapes."""
    root = data_root(data)
    return root is not None and any((root / folder).is_dir() for folder in _CITYSCAPES_FOLDERS)


def acdc(data: Path | None, name: str) -> dict[str, Parts]:
    """ACDC by condition (400 training and 100 validation pictures each, 106 at night), labelled as Cityscapes is."""
    wanted = [f"{kind}/{condition}" for kind in ("rgb_anon", "gt") for condition in CONDITIONS]
    root = data_folder(data, ("acdc", "ACDC"), wanted, name)

    def part(folder: str) -> MaskedPictures:
        return _street(root, f"rgb_anon/{folder}", "_rgb_anon.png", f"gt/{folder}", "_gt_labelIds.png", name)

    return {condition: Parts(part(f"{condition}/train"), part(f"{condition}/val")) for condition in CONDITIONS}


def camvid(data: Path | None, name: str) -> Parts:
    """CamVid with 11 classes (367 and 233 frames); the validation part, one near-still scene, is left alone."""
    root = data_folder(data, ("camvid",), ("train", "test", "classes.json"), name)
    parts = Parts(read_mask_split(root, "train"), read_mask_split(root, "test"))
    if parts.train.classes != CAMVID:
        raise DataError(f"{name}: {shown(root / 'classes.json')} does not list CamVid's 11 classes in their order")
    return parts


def _street(root: Path, pictures: str, ending: str, masks: str, mask_ending: str, name: str) -> MaskedPictures:
    """Pictures one folder deep (a city, a drive), with masks of the same names but for their endings."""
    ignored: dict[int, str | None] = dict.fromkeys(range(34))
    folder = root / pictures
    pairs = [
        (file, root / masks / file.parent.name / file.name.replace(ending, mask_ending))
        for file in sorted(folder.glob(f"*/*{ending}"))
    ]
    return _paired(pairs, Legend({**ignored, **_CITYSCAPES_IDS}), name, folder)


def _paired(pairs: Iterable[tuple[Path, Path]], legend: Legend, name: str, where: Path) -> MaskedPictures:
    pairs = list(pairs)
    if not pairs:
        raise DataError(f"{name}: no pictures in {shown(where)}")
    missing = [file for pair in pairs for file in pair if not file.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(f"{name}: {shown(missing[0])}{more}: no such file; unpack the whole data set")
    return MaskedPictures((Picture(str(image), image, mask=mask) for image, mask in pairs), legend)
