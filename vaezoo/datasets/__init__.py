"""Named datasets of uint8 images, each with one fixed protocol."""

from vaezoo.datasets.definitions import (
    DatasetInfo,
    check_split,
    info,
    list_datasets,
)
from vaezoo.datasets.stream import load_dataset, training_stream
from vaezoo.datasets.tfds_source import DatasetNotFoundError

__all__ = [
    "DatasetInfo",
    "DatasetNotFoundError",
    "check_split",
    "info",
    "list_datasets",
    "load_dataset",
    "training_stream",
]
