"""A folder of image files as a dataset."""

import collections
import concurrent.futures
import dataclasses
import functools
import mimetypes
import os
import pathlib
import re
import sys
import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from vaezoo import checks
from vaezoo.datasets import image_files, image_listing
from vaezoo.files import local_path

_BACKGROUNDS = {"white": 255, "black": 0}
_DEPTHS = (8, 10, 12, 14, 16)  # bits that files of 16 are found to hold
_MANY = 10_000  # files that it takes seconds to look into
_NUM_NAMED = 3  # files that a message names


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """The files of a folder, and how a file becomes an image.

    Attributes:
        image_shape: `(height, width, channels)`.
        levels: 256, or 2 for images that are cut at the middle level.
        resize: whether files are cropped and resized, or all of one size.
        paths: the files of each split, sorted by path.
        background: "white" or "black", what shows through transparent pixels.
        bits: of the levels in 16-bit files; None where there is no such file.
        left_out: number of files that cannot be read.
    """

    image_shape: tuple[int, int, int]
    levels: int
    resize: bool
    paths: Mapping[str, Sequence[pathlib.Path]]
    background: str
    bits: int | None
    left_out: int

    @classmethod
    def open(
        cls,
        folder,
        *,
        size=None,
        channels=None,
        levels=256,
        unreadable="skip",
        background="white",
        bits=None,
    ) -> "ImageFolder":
        """Lists a folder's image files, those in folders within it included.

        Folders named `train`, `validation` and `test` (or `training`, `val`, `valid`,
        `dev`, `testing`, `eval`, `Test`, `val2017`, `test_images` and the like)
        directly in `folder` are its splits; without any of them, all files are `train`.
        Links to folders are followed; what begins with a dot is left out.

        Every file is decoded here, so that none stops a training that has begun: some
        milliseconds a photograph, once in a process. What is left out is counted in one
        warning.

        Args:
            folder: path.
            size: None to take the files as they are, all of one size; else an int or
                `(height, width)`: a file is cropped at its centre to that aspect and
                resized by averaging areas.
            channels: 1 or 3; None for those of the first file.
            levels: 256, or 2: a pixel is then 1 where its level is 128 or more.
            unreadable: "skip" to leave out files that cannot be read, or "refuse".
            background: "white" or "black", what shows through transparent pixels.
            bits: int, 8 to 16, of the levels in 16-bit files; None for the fewest of 8,
                10, 12, 14 and 16 that hold those of all of them.

        Raises:
            ValueError: an option is out of range, the folder holds no image, files have
                several sizes and `size` is None, two folders are one split, or a file
                cannot be read and is not to be skipped.
            NotADirectoryError: there is no such folder.
        """
        if size is not None:
            pair = (size, size) if np.ndim(size) == 0 else size
            size = checks.integers("size", pair, of=("height", "width"))
        channels = checks.choice(
            "channels",
            channels,
            (None, 1, 3),
            advice="Files are of grey or of colours; give a model of such images.",
        )
        levels = checks.choice("levels", levels, (2, 256))
        checks.choice("unreadable", unreadable, ("skip", "refuse"))
        checks.choice("background", background, tuple(_BACKGROUNDS))
        bits = checks.integer("bits", bits, minimum=8, maximum=16, optional=True)
        root = local_path(folder, name="PATH")
        if not root.is_dir():
            raise NotADirectoryError(
                f"image_folder:PATH needs a folder. Received: PATH={str(root)!r}, "
                f"which is {'a file' if root.exists() else 'not there'}. Give the "
                "folder that the images are in."
            )

        files = list(image_listing.walk(root))
        found = [p for p in files if p.suffix.lower() in image_files.SUFFIXES]
        splits, outside = image_listing.by_split(root, found)
        infos, broken = _inspect([path for paths in splits.values() for path in paths])
        if broken and unreadable == "refuse":
            raise ValueError(
                "The files of an image folder must be whole images. Received: "
                f"{_count(broken)} that cannot be read: {_named(root, broken)}. Remove "
                'or repair what is broken, or leave it out: unreadable="skip".'
            )
        paths = {
            split: tuple(path for path in files if path in infos)
            for split, files in splits.items()
        }
        _refuse_empty(root, paths, broken)
        all_paths = [path for files in paths.values() for path in files]
        first = infos[all_paths[0]]
        if size is None:
            _refuse_other_sizes(root, infos, first.size)
        wide = {path: info for path, info in infos.items() if info.largest is not None}
        guessed = _depth(wide.values()) if wide and bits is None else None
        height, width = size or first.size
        small = {
            path: "x".join(map(str, info.size))
            for path, info in infos.items()
            if info.size[0] < height or info.size[1] < width
        }
        narrow = wide if guessed not in (None, 16) else {}
        _warn(root, files, broken, outside, narrow, small)
        return cls(
            image_shape=(
                height,
                width,
                channels or (1 if first.is_grey else 3),
            ),
            levels=levels,
            resize=size is not None,
            paths=paths,
            background=background,
            bits=(bits or guessed) if wide else None,
            left_out=len(broken),
        )

    @property
    def protocol(self) -> str:
        """How a file becomes an image, in words."""
        height, width, _ = self.image_shape
        parts = [
            "Image files sorted by path",
            "the first frame of several",
            "turned upright by their EXIF orientation",
            f"transparent ones over {self.background}",
        ]
        if self.bits is not None:
            parts.append(f"16-bit files as levels of {self.bits} bits")
        if self.resize:
            parts.append(
                f"cropped at the centre to the aspect of {height}x{width} and resized "
                f"to it by averaging areas"
            )
        if self.levels == 2:
            parts.append("1 where the level is 128 or more")
        if self.left_out:
            parts.append(f"without {self.left_out:,} files that cannot be read")
        return ", ".join(parts) + "."

    def read(self, split: str) -> "FolderImages":
        """Returns the images of one split; a file is decoded when it is gathered."""
        return FolderImages(self, split)

    def decode(self, path: pathlib.Path) -> np.ndarray:
        """Returns one file as uint8 `[height, width, channels]`.

        Raises:
            ValueError: the file is not what it was when the folder was opened; the
                message names it.
        """
        height, width, channels = self.image_shape
        try:
            image = image_files.read(
                path,
                channels=channels,
                background=_BACKGROUNDS[self.background],
                bits=self.bits or 16,
            )
        except image_files.UnreadableImageError as error:
            raise ValueError(
                f"{_CHANGED} Received: {str(path)!r} ({error})."
            ) from error
        if image.shape[:2] != (height, width):
            if not self.resize:
                raise ValueError(
                    f"{_CHANGED} Received: {str(path)!r} of {image.shape[0]}x"
                    f"{image.shape[1]} where {height}x{width} is expected."
                )
            image = image_files.crop_and_resize(image, height, width)
        return (image >= 128).astype(np.uint8) if self.levels == 2 else image


_CHANGED = "A file of an image folder must stay as it is while it is read."


def refusal_in(error):
    """The sentence of `ImageFolder.decode` in an error of TensorFlow's, or `None`.

    Args:
        error: a `tf.errors.OpError`, whose message is long.
    """
    found = re.search(rf"{re.escape(_CHANGED)}.*", error.message)
    return found and found[0]


def split_argument(argument: str) -> tuple[str, dict]:
    """The path and the options of an argument `PATH?unreadable=refuse&bits=12`.

    Raises:
        ValueError: an option is none of `unreadable`, `background` and `bits`.
    """
    path, _, text = argument.rpartition("?")
    if not path or not re.fullmatch(r"\w+=\w*(&\w+=\w*)*", text):
        return argument, {}
    options = dict(pair.split("=") for pair in text.split("&"))
    for key, value in options.items():
        checks.choice("option", key, ("unreadable", "background", "bits"))
        if key == "bits" and value.isdigit():
            options[key] = int(value)
    return path, options


class FolderImages:
    """The images of one split of a folder, decoded as they are gathered."""

    def __init__(self, folder: ImageFolder, split: str):
        self._folder = folder
        self._paths = folder.paths[split]

    def __len__(self) -> int:
        return len(self._paths)

    def gather(self, indices):
        import tensorflow as tf

        def decode(indices):
            images = [self._folder.decode(self._paths[i]) for i in indices]
            return np.reshape(images, [-1, *self._folder.image_shape]).astype(np.uint8)

        return tf.numpy_function(decode, [indices], tf.uint8, stateful=False)


# What is in them.


def _inspect(paths):
    """What each file holds, and why others cannot be read: dicts by path."""
    _say_once(len(paths))
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    try:
        results = dict(zip(paths, pool.map(_inspected, paths), strict=True))
    finally:
        pool.shutdown(cancel_futures=True)  # those left by Ctrl-C
    infos = {p: r for p, r in results.items() if not isinstance(r, str)}
    return infos, {p: r for p, r in results.items() if isinstance(r, str)}


@functools.cache
def _say_once(num_files):
    if num_files >= _MANY:
        print(f"Looking into {num_files:,} image files ...", file=sys.stderr)


def _inspected(path):
    try:
        status = os.stat(path)
    except OSError as error:
        return error.strerror
    return _inspected_once(path, status.st_size, status.st_mtime_ns)


@functools.cache
def _inspected_once(path, size, modified):
    try:
        return image_files.inspect(path)
    except image_files.UnreadableImageError as error:
        return str(error)


def _refuse_empty(root, paths, broken):
    for split, files in paths.items():
        if not files:
            unread = f" but {_count(broken)} that cannot be read" if broken else ""
            raise ValueError(
                f"An image folder needs files that end in "
                f"{', '.join(image_files.SUFFIXES)}. Received: PATH={str(root)!r}, "
                f"which holds none{unread} for the split {split!r}. Put images "
                "there, or give another folder."
            )


def _refuse_other_sizes(root, infos, expected):
    others = {p: "x".join(map(str, i.size)) for p, i in infos.items()}
    usual = "x".join(map(str, expected))
    others = {path: size for path, size in others.items() if size != usual}
    if others:
        raise ValueError(
            f"Without a size, all files must have the size of the first, {usual}. "
            f"Received: {_count(others)} of another: {_named(root, others)}. Give "
            "size=(height, width)."
        )


def _depth(infos):
    """The fewest bits of `_DEPTHS` that hold the levels of 16-bit files."""
    largest = max(info.largest for info in infos)
    return next(bits for bits in _DEPTHS if largest < 2**bits)


def _warn(root, files, broken, outside, narrow, small):
    """One warning of all that is not as its owner may think."""
    unknown = [p for p in files if _is_image_of_another_kind(p)]
    parts = []
    if broken:
        parts.append(
            f"{_count(broken)} that cannot be read left out: {_named(root, broken)}"
        )
    if unknown:
        kinds = collections.Counter(path.suffix.lower() for path in unknown)
        counted = ", ".join(f"{n:,} {suffix}" for suffix, n in kinds.items())
        parts.append(
            f"{_count(unknown)} of kinds that are not read left out ({counted}): "
            f"{_named(root, unknown)}"
        )
    if outside:
        parts.append(
            f"{_count(outside)} outside of the splits' folders left out: "
            f"{_named(root, outside)}"
        )
    if narrow:
        parts.append(
            f"{_count(narrow)} of 16 bits hold levels of {_depth(narrow.values())} "
            f"bits at most and are read as such; give bits=16 if they are darker "
            f"pictures: {_named(root, [*narrow])}"
        )
    if small:
        parts.append(
            f"{_count(small)} with a side shorter than that of the images, to which "
            f"they are enlarged: {_named(root, small)}"
        )
    if parts:
        _warn_once(f"Image folder {str(root)!r}: {'; '.join(parts)}.")


@functools.cache  # a run opens its folder several times
def _warn_once(text):
    warnings.warn(text, stacklevel=1)


def _is_image_of_another_kind(path):
    if path.suffix.lower() in image_files.SUFFIXES:
        return False
    kind, _ = mimetypes.guess_type(f"x{path.suffix.lower()}")
    return (kind or "").startswith("image/")


def _count(paths):
    return f"{len(paths):,} file{'s' * (len(paths) != 1)}"


def _named(root, paths):
    """The first few of a list of paths, or of a dict of paths to what is said of each.

    Written as Python writes them, names that are no UTF-8 too.
    """
    texts = []
    for path in list(paths)[:_NUM_NAMED]:
        said = f" ({paths[path]})" if isinstance(paths, dict) else ""
        texts.append(f"{str(path.relative_to(root))!r}{said}")
    more = len(paths) - len(texts)
    return ", ".join(texts) + f" and {more:,} more" * bool(more)
