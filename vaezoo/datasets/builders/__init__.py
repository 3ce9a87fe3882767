"""TFDS builders of datasets that TFDS does not have; importing this registers them.

`checksums.tsv` holds the size and the SHA-256 of each file that is known, and TFDS
refuses another file of the same name. A file that a user puts into TFDS's manual
folder is used, and checked alike, instead of a download.
"""

from vaezoo.datasets.builders.caltech101 import Caltech101Silhouettes
from vaezoo.datasets.builders.lsun import LsunBedroom64
from vaezoo.datasets.builders.omniglot import Omniglot28, OmniglotSmall28

__all__ = [
    "Caltech101Silhouettes",
    "LsunBedroom64",
    "Omniglot28",
    "OmniglotSmall28",
]
