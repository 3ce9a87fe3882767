"""LSUN bedrooms at 64x64 (Yu and others, 2015), from the published databases.

TFDS has a builder of LSUN, but it reads LMDB by TensorFlow I/O, which there is for
older TensorFlow only.
"""

import io

import numpy as np
import tensorflow_datasets as tfds

from vaezoo.datasets import image_files

_URL = "http://dl.yf.io/lsun/scenes/"
_DATABASES = {"train": "bedroom_train_lmdb", "validation": "bedroom_val_lmdb"}
_SIDE = 64


def read_database(folder):
    """Reads an LMDB database of image files, a record at a time.

    Args:
        folder: that of `data.mdb`.

    Returns:
        An iterator of (key, file), a str and bytes.

    Raises:
        ImportError: the `lsun` extra is not installed.
    """
    with _lmdb().open(str(folder), readonly=True, lock=False) as database:
        with database.begin(buffers=True) as transaction:
            for key, file in transaction.cursor():
                yield bytes(key).decode(), bytes(file)


def _lmdb():
    try:
        import lmdb
    except ImportError as error:
        raise ImportError(
            "LSUN's databases are read by the package lmdb, which is not installed. "
            "It comes with the 'lsun' extra: pip install 'vaezoo[lsun]'."
        ) from error
    return lmdb


def shrink(file: bytes) -> np.ndarray:
    """The square at the centre of a picture, averaged by area to 64x64.

    Args:
        file: an image file; the published ones have a smaller side of 256 pixels, so
            that a level is the mean of 4x4.

    Returns:
        uint8 `[64, 64, 3]`.
    """
    from PIL import Image

    with Image.open(io.BytesIO(file)) as image:
        return image_files.crop_and_resize(
            np.asarray(image.convert("RGB")), _SIDE, _SIDE
        )


class LsunBedroom64(tfds.core.GeneratorBasedBuilder):
    """The bedrooms in the published splits, shuffled by TFDS.

    In the order of the keys TFDS would sort all of them in memory.
    """

    VERSION = tfds.core.Version("1.0.0")
    FILES = {f"{_URL}{name}.zip": f"{name}.zip" for name in _DATABASES.values()}

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "LSUN bedrooms, the square at the centre averaged by area to 64x64."
            ),
            features=tfds.features.FeaturesDict(
                {"image": tfds.features.Image(shape=(_SIDE, _SIDE, 3))}
            ),
            homepage="https://www.yf.io/p/lsun",
        )

    def _split_generators(self, dl_manager):
        _lmdb()  # before 46 GB are downloaded
        folders = dl_manager.download_and_extract(
            {split: f"{_URL}{name}.zip" for split, name in _DATABASES.items()}
        )
        return {
            split: self._generate_examples(folders[split] / name)
            for split, name in _DATABASES.items()
        }

    def _generate_examples(self, folder):
        for key, file in read_database(folder):
            yield key, {"image": shrink(file)}
