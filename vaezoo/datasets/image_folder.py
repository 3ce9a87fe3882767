"""A folder of PNG and JPEG files as a dataset."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from vaezoo import checks

_SUFFIXES = (".png", ".jpg", ".jpeg")
_SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """The files of a folder, and how a file becomes an image.

    Attributes:
        image_shape: `(height, width, channels)`.
        levels: 256, or 2 for images that are cut at the middle level.
        resize: whether files of another size are cropped and resized, or refused.
        paths: the files of each split, sorted by path.
    """

    image_shape: tuple[int, int, int]
    levels: int
    resize: bool
    paths: Mapping[str, Sequence[pathlib.Path]]

    @classmethod
    def open(cls, folder, *, size=None, channels=None, levels=256) -> "ImageFolder":
        """Lists a folder's PNG and JPEG files, those in folders within it included.

        Folders named `train`, `validation` and `test` directly in `folder` are its
        splits; without any of them, all files are `train`. Only the first file is
        decoded here.

        Args:
            folder: path.
            size: None to take the files as they are, all of one size; else an int or
                `(height, width)`: a file is cropped at its centre to that aspect and
                resized by averaging areas.
            channels: 1 or 3; None for those of the first file.
            levels: 256, or 2: a pixel is then 1 where its level is 128 or more.

        Raises:
            ValueError: an option is out of range, or the folder holds no image.
            NotADirectoryError: there is no such folder.
        """
        if size is not None:
            pair = (size, size) if np.ndim(size) == 0 else size
            size = checks.integers("size", pair, of=("height", "width"))
        channels = checks.choice("channels", channels, (None, 1, 3))
        levels = checks.choice("levels", levels, (2, 256))
        root = pathlib.Path(folder).expanduser()
        if not root.is_dir():
            raise NotADirectoryError(
                f"image_folder:PATH needs a folder. Received: PATH={str(root)!r}, "
                f"which is {'a file' if root.exists() else 'not there'}."
            )
        named = [split for split in _SPLITS if (root / split).is_dir()]
        paths = {split: _list_images(root / split) for split in named}
        if not named:
            paths = {"train": _list_images(root)}
        for split, files in paths.items():
            if not files:
                where = root / split if named else root
                raise ValueError(
                    f"An image folder needs files that end in {', '.join(_SUFFIXES)}. "
                    f"Received: PATH={str(where)!r}, which holds none."
                )
        first = _decode(next(iter(paths.values()))[0], channels or 0)
        channels = channels or (1 if first.shape[-1] < 3 else 3)
        shape = (*(size or first.shape[:2]), channels)
        return cls(image_shape=shape, levels=levels, resize=bool(size), paths=paths)

    @property
    def protocol(self) -> str:
        """How a file becomes an image, in words."""
        height, width, _ = self.image_shape
        parts = ["PNG and JPEG files sorted by path"]
        if self.resize:
            parts.append(
                f"cropped at the centre to the aspect of {height}x{width} and resized "
                f"to it by averaging areas"
            )
        if self.levels == 2:
            parts.append("1 where the level is 128 or more")
        return ", ".join(parts) + "."

    def read(self, split: str) -> "FolderImages":
        """Returns the images of one split; a file is decoded when it is gathered."""
        return FolderImages(self, split)

    def decode(self, path: pathlib.Path) -> np.ndarray:
        """Returns one file as uint8 `[height, width, channels]`.

        Raises:
            ValueError: the file is no image, or of another size where none was asked
                for; the message names the file.
        """
        height, width, channels = self.image_shape
        image = _decode(path, channels)
        if image.shape[:2] != (height, width):
            if not self.resize:
                raise ValueError(
                    f"Without a size, all files must have the size of the first, "
                    f"{height}x{width}. Received: {str(path)!r} of "
                    f"{image.shape[0]}x{image.shape[1]}. Give size=(height, width)."
                )
            image = _crop_and_resize(image, height, width)
        return (image >= 128).astype(np.uint8) if self.levels == 2 else image


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
            return np.stack([self._folder.decode(self._paths[i]) for i in indices])

        return tf.numpy_function(decode, [indices], tf.uint8, stateful=False)


def _list_images(folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
    files = (p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES)
    return tuple(sorted(p for p in files if p.is_file()))


def _decode(path: pathlib.Path, channels: int) -> np.ndarray:
    import tensorflow as tf

    try:
        with tf.device("CPU"):
            data = tf.io.read_file(str(path))
            return tf.io.decode_image(
                data, channels=channels, expand_animations=False
            ).numpy()
    except tf.errors.OpError as error:
        raise ValueError(
            f"A file of an image folder must be a whole PNG or JPEG image. Received: "
            f"{str(path)!r}. Remove or repair it ({error.message})."
        ) from error


def _crop_and_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    import tensorflow as tf

    rows, columns = image.shape[:2]
    scale = min(rows / height, columns / width)
    crop = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (rows - crop[0]) // 2, (columns - crop[1]) // 2
    image = image[top : top + crop[0], left : left + crop[1]]
    with tf.device("CPU"):
        resized = tf.image.resize(image, (height, width), method="area")
    return np.clip(np.rint(resized.numpy()), 0, 255).astype(np.uint8)
