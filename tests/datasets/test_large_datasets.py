"""Datasets that are read from a file: from published files of a few made-up images."""

import hashlib
import io
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image
from replicas import check_replicas
from tensorflow_datasets.core.download import checksums

from vaezoo import datasets
from vaezoo.datasets import definitions, images, tfds_source

NUM = {"train": 7, "validation": 3}  # of the made-up images
URL = "http://dl.yf.io/lsun/scenes/"


def random_images(split, height, width):
    seed = list(NUM).index(split)
    shape = (NUM[split], height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoded(image, kind):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, lossless=True)
    return file.getvalue()


@pytest.fixture
def published(manual, monkeypatch):
    """A function that has files of the manual folder taken for the published ones.

    Of the dataset's images there are as few as in those.
    """
    real = tfds_source.read

    def read(name, tfds_name, split, num_images, **options):
        return real(name, tfds_name, split, NUM[split], **options)

    def publish(tfds_name):
        builder = tfds_source.builder(tfds_name)
        infos = {
            url: checksums.UrlInfo(
                (manual / name).stat().st_size,
                hashlib.sha256((manual / name).read_bytes()).hexdigest(),
                name,
            )
            for url, name in tfds_source.filenames(builder).items()
        }
        monkeypatch.setattr(type(builder), "url_infos", infos)
        monkeypatch.setattr(tfds_source, "read", read)

    definitions._read_named.cache_clear()
    yield publish
    definitions._read_named.cache_clear()


@pytest.fixture
def lsun(manual, published):
    """The published databases of LSUN's bedrooms; their images, by split."""
    lmdb = pytest.importorskip("lmdb")
    made = {split: random_images(split, 256, 300) for split in NUM}
    for split, short in {"train": "train", "validation": "val"}.items():
        name = f"bedroom_{short}_lmdb"
        folder = manual.parent / name
        with lmdb.open(str(folder), map_size=1 << 24) as database:
            with database.begin(write=True) as transaction:
                for index, image in enumerate(made[split]):
                    transaction.put(b"key%d" % index, encoded(image, "webp"))
        with zipfile.ZipFile(manual / f"{name}.zip", "w") as archive:
            archive.write(folder / "data.mdb", f"{name}/data.mdb")
    published("lsun_bedroom64")
    return made


@pytest.fixture
def small_imagenet(manual, published):
    """The published archives of ImageNet 64x64; their images, by split."""
    made = {split: random_images(split, 64, 64) for split in NUM}
    for split, short in {"train": "train", "validation": "valid"}.items():
        with tarfile.open(manual / f"{short}_64x64.tar", "w") as archive:
            for index, image in enumerate(made[split]):
                member = tarfile.TarInfo(f"{short}_64x64/{index}.png")
                data = encoded(image, "png")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    published("downsampled_imagenet/64x64")
    return made


def load(name, split):
    data = datasets.load_dataset(name, split, batch_size=4)
    batches = [batch.numpy() for batch in data]
    assert [len(batch) for batch in batches[:-1]] == [4] * (len(batches) - 1)
    return np.concatenate(batches)


def check_same(found, expected):
    """The same images, in the order of TFDS."""
    assert found.shape == expected.shape and found.dtype == np.uint8
    assert sorted(map(bytes, found)) == sorted(map(bytes, expected))


def check_stream(name):
    """Training reads each image once an epoch; workers share the rows of a batch."""
    stream, num_steps = datasets.training_stream(
        name, batch_size=5, seed=3, position=lambda: 0
    )
    assert stream.element_spec.shape == [None, *datasets.info(name).image_shape]
    batches = [batch.numpy() for batch in stream.take(num_steps)]
    check_same(np.concatenate(batches), load(name, "train"))
    check_replicas(name, batches, batch_size=5, seed=3)


def means(levels, side):
    """Mean levels of squares of `side` pixels, in floating point."""
    n, height, width, channels = levels.shape
    squares = levels.reshape(n, height // side, side, width // side, side, channels)
    return squares.mean(axis=(2, 4))


def test_bedrooms_are_cropped_and_averaged(lsun, manual):
    for split, source in {"train": "train", "test": "validation"}.items():
        squares = np.rint(means(lsun[source][:, :, 22:278], 4))
        check_same(load("lsun_bedroom64", split), squares.astype(np.uint8))
        halves = np.floor(means(squares, 2))
        check_same(load("lsun_bedroom32", split), halves.astype(np.uint8))
    check_stream("lsun_bedroom32")
    (mapped,) = manual.parents[1].glob("lsun_bedroom64/*/vaezoo-train.npy")
    assert np.load(mapped, mmap_mode="r").shape == (7, 64, 64, 3)


def test_small_imagenet_is_read_from_a_file(small_imagenet, manual):
    """Of the archives of its own size alone."""
    assert not (manual / "train_32x32.tar").exists()
    check_same(load("imagenet64", "test"), small_imagenet["validation"])
    check_same(load("imagenet64", "train"), small_imagenet["train"])
    check_stream("imagenet64")
    assert list(manual.parents[1].glob("downsampled_imagenet/64x64/*/vaezoo-*.npy"))


def test_halves_round_down():
    levels = np.array([[0, 1, 255, 255], [1, 1, 255, 254]], np.uint8)
    halved = images.HalvedImages(images.ImageArray(levels[None, ..., None]))
    np.testing.assert_array_equal(halved.gather([0])[0, ..., 0], [[0, 254]])


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("imagenet64", "train_64x64.tar, valid_64x64.tar"),
        ("lsun_bedroom32", "bedroom_train_lmdb.zip, bedroom_val_lmdb.zip"),
    ],
)
def test_without_its_files_the_error_names_them(manual, name, files):
    with pytest.raises(datasets.DatasetNotFoundError) as error:
        datasets.load_dataset(name, "test", batch_size=1)
    assert f"({files})" in str(error.value) and str(manual) in str(error.value)


def test_bedrooms_need_an_extra(manual, monkeypatch):
    """Which is said before anything is downloaded."""
    monkeypatch.setitem(sys.modules, "lmdb", None)
    monkeypatch.setattr(tfds_source, "_answers", lambda url: True)
    with pytest.raises(ImportError, match=r"pip install 'vaezoo\[lsun\]'"):
        datasets.load_dataset("lsun_bedroom64", "test", batch_size=1)
    assert not list(manual.iterdir())


def test_a_database_with_another_checksum_is_refused(manual):
    pytest.importorskip("lmdb")
    for split in ("train", "val"):
        (manual / f"bedroom_{split}_lmdb.zip").write_bytes(b"not the published file")
    with pytest.raises(datasets.DatasetNotFoundError, match="wrong checksum"):
        datasets.load_dataset("lsun_bedroom64", "test", batch_size=1)


def test_protocol_sizes():
    sizes = {"train": 1_281_149, "test": 49_999}
    assert datasets.info("imagenet64").splits == sizes
    for side in (32, 64):
        info = datasets.info(f"lsun_bedroom{side}")
        assert info.splits == {"train": 3_033_042, "test": 300}
        assert info.image_shape == (side, side, 3) and info.levels == 256
    with pytest.raises(ValueError, match="'lsun_bedroom32' has no such split"):
        datasets.load_dataset("lsun_bedroom32", "validation", batch_size=1)
