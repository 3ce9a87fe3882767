"""What each dataset is: a table, one definition a name.

A definition says what an image is, which splits there are, and how to read one of
them. It holds no image: nothing is read before a split is asked for.

To add a dataset, add a `Definition` to `_DEFINITIONS`; `read(split)` returns whatever
addresses its images by index (`ImageArray` if they fit in memory). To add datasets
that are named by an argument, such as a path, add a function to `_FAMILIES`.
"""

import dataclasses
import difflib
import functools
import types
from collections.abc import Callable, Mapping

import numpy as np

from vaezoo.datasets import image_folder, tfds_source
from vaezoo.datasets.images import ConcatenatedImages, HalvedImages, ImageArray, Images


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What a dataset is.

    Attributes:
        name: the name that `load_dataset` takes.
        image_shape: `(height, width, channels)`.
        levels: number of values of a pixel: 2 for binary images, whose pixels are 0
            or 1, else 256.
        splits: number of images by name of the split.
        protocol: in words, how the images were made from the source and split.
        origin: in words, whose the source is, and its licence, as far as it is known.
        binarization_seed: the seed that fixed the binary images of the validation and
            test splits; None where the source is not resampled.
    """

    name: str
    image_shape: tuple[int, int, int]
    levels: int
    splits: Mapping[str, int]
    protocol: str
    origin: str = "Files of the user's."
    binarization_seed: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "splits", types.MappingProxyType(dict(self.splits)))


@dataclasses.dataclass(frozen=True)
class Definition:
    """A dataset: its record, and how one of its splits is read.

    `read(split)` returns the stored images. With `info.binarization_seed` these are
    grey levels, and an image x is drawn from them: x ~ Bernoulli(level / 255).
    """

    info: DatasetInfo
    read: Callable[[str], Images]


def _read_digits(split: str) -> ImageArray:
    import sklearn.datasets

    levels = sklearn.datasets.load_digits().images
    images = (levels >= 8).astype(np.uint8)[..., np.newaxis]
    return ImageArray(images[:1437] if split == "train" else images[1437:])


def _from_tfds(info: DatasetInfo, tfds_name: str, slices: Mapping[str, str], **options):
    def read(split):
        return tfds_source.read(
            info.name,
            tfds_name,
            slices[split],
            info.splits[split],
            image_shape=info.image_shape,
            **options,
        )

    return Definition(info, read)


_MNIST = (
    "MNIST, Y. LeCun, C. Cortes and C. Burges, from NIST's databases; distributed "
    "under CC BY-SA 3.0"
)
_OMNIGLOT = (
    "Omniglot, B. Lake, R. Salakhutdinov and J. Tenenbaum (2015), "
    "github.com/brendenlake/omniglot, MIT licence"
)


def _small_imagenet(side: int, *, gigabytes: int) -> Definition:
    size = f"{side}x{side}"
    return _from_tfds(
        DatasetInfo(
            name=f"imagenet{side}",
            image_shape=(side, side, 3),
            levels=256,
            splits={"train": 1_281_149, "test": 49_999},
            protocol=(
                f"Small ImageNet {size} of van den Oord et al. (TFDS "
                f"`downsampled_imagenet/{size}`); numbers are published on its "
                "validation split, which is the test split here. Read from a file as "
                f"images are asked for, {gigabytes} GB, never whole in memory."
            ),
            origin=(
                "A. van den Oord, N. Kalchbrenner and K. Kavukcuoglu (2016), from "
                "ImageNet, whose terms allow research and education without profit."
            ),
        ),
        f"downsampled_imagenet/{size}",
        {"train": "train", "test": "validation"},
        in_memory=False,
    )


def _lsun_bedrooms(side: int, how: str) -> DatasetInfo:
    return DatasetInfo(
        name=f"lsun_bedroom{side}",
        image_shape=(side, side, 3),
        levels=256,
        splits={"train": 3_033_042, "test": 300},
        protocol=(
            "LSUN bedrooms in the published splits, of which the validation split is "
            f"the test split here; {how}"
        ),
        origin=(
            "LSUN, F. Yu, A. Seff, Y. Zhang, S. Song, T. Funkhouser and J. Xiao "
            "(2015), pictures found on the web; the files state no licence."
        ),
    )


_DEFINITIONS = (
    _from_tfds(
        DatasetInfo(
            name="mnist_static",
            image_shape=(28, 28, 1),
            levels=2,
            splits={"train": 50_000, "validation": 10_000, "test": 10_000},
            protocol=(
                "MNIST binarized once and for all by Larochelle (TFDS "
                "`binarized_mnist`), in the published splits."
            ),
            origin=f"{_MNIST}; binarized by H. Larochelle.",
        ),
        "binarized_mnist",
        {"train": "train", "validation": "validation", "test": "test"},
    ),
    _from_tfds(
        DatasetInfo(
            name="mnist_dynamic",
            image_shape=(28, 28, 1),
            levels=2,
            splits={"train": 55_000, "validation": 5_000, "test": 10_000},
            protocol=(
                "MNIST (TFDS `mnist`) with x ~ Bernoulli(level / 255): the training "
                "images are drawn anew in each epoch, validation and test once. "
                "Validation is the last 5,000 of TFDS's 60,000 training images."
            ),
            origin=f"{_MNIST}.",
            binarization_seed=20161105,
        ),
        "mnist",
        {"train": "train[:55000]", "validation": "train[55000:]", "test": "test"},
    ),
    _from_tfds(
        DatasetInfo(
            name="caltech101",
            image_shape=(28, 28, 1),
            levels=2,
            splits={"train": 4_100, "validation": 2_264, "test": 2_307},
            protocol=(
                "Caltech-101 Silhouettes 28x28, split 1, in the published splits; a "
                "pixel is 1 on the object (1 - the file's)."
            ),
            origin=(
                "Caltech-101 Silhouettes, B. Marlin, K. Swersky, B. Chen and N. de "
                "Freitas (2010), from Caltech-101; the files state no licence."
            ),
        ),
        "caltech101_silhouettes",
        {"train": "train", "validation": "validation", "test": "test"},
    ),
    _from_tfds(
        DatasetInfo(
            name="omniglot",
            image_shape=(28, 28, 1),
            levels=2,
            splits={"train": 23_000, "validation": 1_345, "test": 8_070},
            protocol=(
                "OMNIGLOT at 28x28 from Burda's chardata.mat with "
                "x ~ Bernoulli(level / 255), levels rounded to 0 to 255: the training "
                "images are drawn anew in each epoch, validation and test once. "
                "Validation is the last 1,345 of the 24,345 training images once "
                "shuffled by NumPy's RandomState(123). No checksum of the file is "
                "known to us; TFDS records that of the file it read (`metadata` of "
                "`omniglot28`)."
            ),
            origin=f"{_OMNIGLOT}; resized by Y. Burda, whose file states none.",
            binarization_seed=20161106,
        ),
        "omniglot28",
        {"train": "train[:23000]", "validation": "train[23000:]", "test": "test"},
    ),
    _from_tfds(
        DatasetInfo(
            name="omniglot_small",
            image_shape=(28, 28, 1),
            levels=2,
            splits={"train": 3_388, "validation": 484, "test": 968},
            protocol=(
                "Of our own, comparable with no published number: the 242 characters "
                "(8 alphabets, 20 drawers a character) of OMNIGLOT's two published "
                "small sets, Greek and Latin, which are in both, once. Ink is "
                "averaged by area from 105x105 to 28x28 levels of 0 to 255, and "
                "x ~ Bernoulli(level / 255): the training images are drawn anew in "
                "each epoch, validation and test once. Drawers 1 to 14 of each "
                "character train, 15 and 16 are validation, 17 to 20 test."
            ),
            origin=f"{_OMNIGLOT}.",
            binarization_seed=20161107,
        ),
        "omniglot_small28",
        {"train": "train", "validation": "validation", "test": "test"},
    ),
    _from_tfds(
        DatasetInfo(
            name="cifar10",
            image_shape=(32, 32, 3),
            levels=256,
            splits={"train": 50_000, "test": 10_000},
            protocol=(
                "CIFAR-10 (TFDS `cifar10`) in the published splits, without "
                "augmentation. There is no validation split: published numbers are "
                "of models trained on all 50,000 training images."
            ),
            origin=(
                "CIFAR-10, A. Krizhevsky (2009), from 80 Million Tiny Images; the "
                "files state no licence."
            ),
        ),
        "cifar10",
        {"train": "train", "test": "test"},
    ),
    _small_imagenet(32, gigabytes=4),
    _small_imagenet(64, gigabytes=16),
    _from_tfds(
        _lsun_bedrooms(
            64,
            "the square at the centre averaged by area to 64x64, as of DCGAN but with "
            "the near-duplicates that its authors removed. Read from a file as images "
            "are asked for, 37 GB, never whole in memory; making it takes the 46 GB "
            "of the published zips, as much again unpacked and 27 GB of TFDS's.",
        ),
        "lsun_bedroom64",
        {"train": "train", "test": "validation"},
        in_memory=False,
    ),
    Definition(
        _lsun_bedrooms(
            32, "levels of `lsun_bedroom64` averaged over 2x2 pixels, rounded down."
        ),
        lambda split: HalvedImages(_read_named("lsun_bedroom64", split)),
    ),
    Definition(
        DatasetInfo(
            name="digits",
            image_shape=(8, 8, 1),
            levels=2,
            splits={"train": 1_437, "test": 360},
            protocol=(
                "scikit-learn's 8x8 digits; a pixel is 1 where the level (0 to 16) is "
                "8 or more. The first 1,437 images train and the last 360 test. There "
                "is no validation split: the set is small, and a test split that also "
                "picked the model would measure nothing."
            ),
            origin=(
                "Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak "
                "(1998), UCI Machine Learning Repository, CC BY 4.0; the copy of "
                "scikit-learn."
            ),
        ),
        _read_digits,
    ),
)


def _image_folder(argument: str, **options) -> Definition:
    path, own_options = image_folder.split_argument(argument)
    folder = image_folder.ImageFolder.open(path, **own_options, **options)
    return Definition(
        DatasetInfo(
            name=f"image_folder:{argument}",
            image_shape=folder.image_shape,
            levels=folder.levels,
            splits={split: len(paths) for split, paths in folder.paths.items()},
            protocol=folder.protocol,
        ),
        folder.read,
    )


_FAMILIES = {"image_folder": _image_folder}


def list_datasets() -> list[str]:
    """Returns the names that `load_dataset` takes; `:PATH` stands for an argument."""
    return sorted(_by_name()) + sorted(f"{family}:PATH" for family in _FAMILIES)


def info(name: str, **options) -> DatasetInfo:
    """Returns the record of a dataset, without reading its images.

    Args:
        name: as for `load_dataset`.
        **options: as for `load_dataset`.

    Raises:
        ValueError: there is no such dataset; the message names the near ones.
    """
    return find(name, **options).info


def find(name: str, **options) -> Definition:
    """Returns the definition that `name` and `options` stand for."""
    family, colon, argument = str(name).partition(":")
    if family in _FAMILIES:
        if not (colon and argument):
            raise ValueError(
                f"A dataset of the family {family!r} needs an argument. "
                f"Received: name={name!r}. Write {family}:PATH."
            )
        return _FAMILIES[family](argument, **options)
    named = _by_name()
    if name not in named:
        near = difflib.get_close_matches(str(name), [*named, *_FAMILIES], n=3)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(
            f"There is no dataset of this name. Received: name={name!r}. "
            f"{hint}There are: {', '.join(list_datasets())}."
        )
    if options:
        raise ValueError(
            f"The dataset {name!r} takes no options. Received: {sorted(options)}. "
            f"Options are for image_folder:PATH."
        )
    return named[name]


def check_split(info: DatasetInfo, split: str) -> None:
    """Refuses a split that a dataset does not have; `train+validation` is both.

    Raises:
        ValueError: the dataset has no such split; the message lists those it has.
    """
    parts = str(split).split("+")
    missing = [part for part in parts if part not in info.splits]
    if missing or len(set(parts)) < len(parts):
        raise ValueError(
            f"The dataset {info.name!r} has no such split. Received: "
            f"split={split!r}. It has: {', '.join(info.splits)}."
        )


def read(definition: Definition, split: str) -> Images:
    """Returns the stored images of one split; those of a named dataset stay cached.

    `train+validation` is both splits, in this order.

    Raises:
        ValueError: the dataset has no such split; the message lists those it has.
    """
    check_split(definition.info, split)
    parts = split.split("+")
    if len(parts) > 1:
        return ConcatenatedImages([read(definition, part) for part in parts])
    if definition.info.name in _by_name():
        return _read_named(definition.info.name, split)
    return definition.read(split)


@functools.cache
def _by_name() -> dict[str, Definition]:
    return {definition.info.name: definition for definition in _DEFINITIONS}


@functools.lru_cache(maxsize=4)
def _read_named(name: str, split: str) -> Images:
    return _by_name()[name].read(split)
