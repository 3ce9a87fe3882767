"""Which real datasets are there; a test of one that is not is skipped."""

import pytest

from vaezoo.datasets import tfds_source

TFDS_NAMES = {
    "mnist_static": "binarized_mnist",
    "mnist_dynamic": "mnist",
    "caltech101": "caltech101_silhouettes",
    "omniglot": "omniglot28",
    "omniglot_small": "omniglot_small28",
}


def skip_unless_prepared(name):
    """Skips where TFDS has neither the dataset nor all of its published files."""
    if name in TFDS_NAMES:
        pytest.importorskip("tensorflow_datasets")
        builder = tfds_source.builder(TFDS_NAMES[name])
        if not builder.is_prepared():
            published_files(name)


def published_files(name):
    """The files in TFDS's manual folder that a dataset is made from."""
    builder = tfds_source.builder(TFDS_NAMES[name])
    names = tfds_source.filenames(builder).values()
    files = [tfds_source.manual_dir(builder) / file for file in names]
    if not all(file.exists() for file in files):
        pytest.skip(f"TFDS has not prepared {builder.name}, nor has it {list(names)}")
    return files
