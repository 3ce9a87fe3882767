"""Caltech-101 Silhouettes 28x28, split 1 (Marlin and others, AISTATS 2010)."""

import numpy as np
import tensorflow_datasets as tfds

_FILENAME = "caltech101_silhouettes_28_split1.mat"
_URL = f"https://people.cs.umass.edu/~marlin/data/{_FILENAME}"
_KEYS = {"train": "train_data", "validation": "val_data", "test": "test_data"}


def read_silhouettes(path) -> dict[str, np.ndarray]:
    """Reads the published file, with 1 for the object and images upright.

    The file has 1 for the background, and its rows are images column by column.

    Returns:
        uint8 arrays `[num_images, 28, 28, 1]` of 0 and 1, by name of the split.
    """
    import scipy.io

    matrices = scipy.io.loadmat(path, variable_names=list(_KEYS.values()))

    def images(matrix):
        columns = np.uint8(1) - matrix.reshape(-1, 28, 28)
        return columns.transpose(0, 2, 1)[..., np.newaxis]

    return {split: images(matrices[key]) for split, key in _KEYS.items()}


class Caltech101Silhouettes(tfds.core.GeneratorBasedBuilder):
    """Silhouettes in the published splits, in the order of the file."""

    VERSION = tfds.core.Version("1.0.0")
    FILES = {_URL: _FILENAME}

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "Caltech-101 Silhouettes 28x28, split 1. A pixel is 1 on the object "
                "(1 - the file's)."
            ),
            features=tfds.features.FeaturesDict(
                {"image": tfds.features.Image(shape=(28, 28, 1))}
            ),
            homepage="https://people.cs.umass.edu/~marlin/data.shtml",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        splits = read_silhouettes(dl_manager.download(_URL))
        return {split: self._generate_examples(x) for split, x in splits.items()}

    def _generate_examples(self, images):
        for index, image in enumerate(images):
            yield index, {"image": image}
