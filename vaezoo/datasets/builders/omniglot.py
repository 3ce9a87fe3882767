"""OMNIGLOT at 28x28: Burda's file, and our own from the two published small zips."""

import hashlib
import pathlib
import zipfile

import numpy as np
import tensorflow_datasets as tfds

_BURDA_URL = "https://github.com/yburda/iwae/raw/master/datasets/OMNIGLOT/chardata.mat"
_LAKE_URL = "https://github.com/brendenlake/omniglot/raw/master/python/"
_SMALL_ZIPS = ("images_background_small1.zip", "images_background_small2.zip")

# Number of the last drawer of each split; each character has drawers 1 to 20.
_LAST_DRAWERS = {"train": 14, "validation": 16, "test": 20}


def read_chardata(path) -> dict[str, np.ndarray]:
    """Reads Burda's file, images upright and strokes bright.

    The file's columns are images, each column by column, as levels from 0 to 1.

    Args:
        path: of `chardata.mat`, with `data` and `testdata`, `[784, num_images]`.

    Returns:
        uint8 grey levels `[num_images, 28, 28, 1]` of `train` and `test`, in the order
        of the file.

    Raises:
        ValueError: the matrices are not there, or of another shape or range.
    """
    import scipy.io

    keys = {"train": "data", "test": "testdata"}
    matrices = scipy.io.loadmat(path, variable_names=list(keys.values()))

    def levels(key):
        matrix = matrices.get(key)
        shape = None if matrix is None else matrix.shape
        if shape is None or len(shape) != 2 or shape[0] != 784:
            raise ValueError(
                f"chardata.mat must hold {key!r} of the shape [784, num_images]. "
                f"Received: path={str(path)!r} with {key}.shape={shape}. Get the file "
                f"from {_BURDA_URL}."
            )
        low, high = matrix.min(initial=0), matrix.max(initial=1)
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"The levels in chardata.mat must be from 0 to 1. Received: "
                f"path={str(path)!r} with {key} from {low} to {high}. Get the file "
                f"from {_BURDA_URL}."
            )
        columns = np.rint(255.0 * matrix.T).astype(np.uint8).reshape(-1, 28, 28)
        return columns.transpose(0, 2, 1)[..., np.newaxis]

    return {split: levels(key) for split, key in keys.items()}


def shrink(ink: np.ndarray) -> np.ndarray:
    """Averages areas: a grey level is the inked share of 3.75 x 3.75 pixels.

    In integers, so that every machine has the same levels.

    Args:
        ink: uint8 `[105, 105]`, 1 where there is ink.

    Returns:
        uint8 grey levels `[28, 28, 1]`, 255 where all is ink.
    """
    fine = ink.astype(np.int64).repeat(4, axis=0).repeat(4, axis=1)
    inked = fine.reshape(28, 15, 28, 15).sum(axis=(1, 3))  # of 15 * 15 = 225
    return np.rint(inked * 17 / 15).astype(np.uint8)[..., np.newaxis]


def read_drawings(*paths) -> dict[tuple[str, str, int], bytes]:
    """Reads the PNG files of OMNIGLOT's zips, one that is in two of them once.

    Returns:
        PNG files, by (alphabet, character, drawer), sorted; drawers are 1 to 20.
    """
    drawings = {}
    for path in paths:
        with zipfile.ZipFile(path) as archive:
            for member in map(pathlib.PurePosixPath, archive.namelist()):
                if member.suffix == ".png":
                    *_, alphabet, character, name = member.parts
                    drawer = int(name.removesuffix(".png").split("_")[1])
                    key = alphabet, character, drawer
                    drawings[key] = archive.read(str(member))
    return dict(sorted(drawings.items()))


def _decode_ink(png: bytes) -> np.ndarray:
    import tensorflow as tf

    with tf.device("CPU"):
        return (tf.io.decode_png(png, channels=1)[..., 0] == 0).numpy()


def _info(builder, description: str, homepage: str, **options):
    return tfds.core.DatasetInfo(
        builder=builder,
        description=description,
        features=tfds.features.FeaturesDict(
            {"image": tfds.features.Image(shape=(28, 28, 1))}
        ),
        homepage=homepage,
        disable_shuffling=True,
        **options,
    )


class Omniglot28(tfds.core.GeneratorBasedBuilder):
    """Grey levels of Burda's `chardata.mat`; `train` shuffled by seed 123.

    No checksum of the file is known to us, so TFDS cannot tell another file from it.
    The size and the SHA-256 of the file that was read are in `builder.info.metadata`.
    """

    VERSION = tfds.core.Version("1.0.0")
    FILES = {_BURDA_URL: "chardata.mat"}

    def _info(self):
        return _info(
            self,
            "OMNIGLOT as grey levels at 28x28, as Burda and others (2016) use it. "
            "`train` is shuffled by NumPy's RandomState(123): its last 1,345 images "
            "are the validation images of the usual protocol. No checksum of the "
            "source is known: the metadata record the file that was read.",
            "https://github.com/yburda/iwae",
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager):
        path = pathlib.Path(dl_manager.download_dir) / "manual" / "chardata.mat"
        if not path.exists():  # TFDS itself looks there only for known checksums.
            path = pathlib.Path(dl_manager.download(_BURDA_URL))
        levels = read_chardata(path)
        content = path.read_bytes()
        self.info.metadata.update(
            size=len(content), sha256=hashlib.sha256(content).hexdigest()
        )
        order = np.random.RandomState(123).permutation(len(levels["train"]))
        return {
            "train": self._generate_examples(levels["train"][order]),
            "test": self._generate_examples(levels["test"]),
        }

    def _generate_examples(self, images):
        for index, image in enumerate(images):
            yield index, {"image": image}


class OmniglotSmall28(tfds.core.GeneratorBasedBuilder):
    """Grey levels of the two small zips, split by drawer; a protocol of our own."""

    VERSION = tfds.core.Version("1.0.0")
    FILES = {_LAKE_URL + name: name for name in _SMALL_ZIPS}

    def _info(self):
        return _info(
            self,
            "The characters of OMNIGLOT's two published small sets as grey levels at "
            "28x28, ink bright. Drawers 1 to 14 of each character are `train`, 15 and "
            "16 `validation`, 17 to 20 `test`.",
            "https://github.com/brendenlake/omniglot",
        )

    def _split_generators(self, dl_manager):
        drawings = read_drawings(*dl_manager.download(list(self.FILES)))
        generators, first = {}, 1
        for split, last in _LAST_DRAWERS.items():
            generators[split] = self._generate_examples(
                [png for key, png in drawings.items() if first <= key[-1] <= last]
            )
            first = last + 1
        return generators

    def _generate_examples(self, drawings):
        for index, png in enumerate(drawings):
            yield index, {"image": shrink(_decode_ink(png))}
