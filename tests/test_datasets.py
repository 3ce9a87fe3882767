import dataclasses
import itertools
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from vaezoo import datasets
from vaezoo.datasets import definitions, images

MNIST_TEST_ONES = 1_039_083  # of the fixed binarization
TFDS_NAMES = {"mnist_static": "binarized_mnist", "mnist_dynamic": "mnist"}


def arrays(dataset):
    return [batch.numpy() for batch in dataset]


def passes(name="digits", *, position=0, num=1, batch_size=100, seed=3):
    """The batches of `num` passes of a training stream from `position`."""
    steps = iter(np.arange(num))
    dataset = datasets.training_stream(
        name,
        batch_size=batch_size,
        seed=seed,
        position=lambda: position + next(steps) * -(-1437 // batch_size),
    )
    return [arrays(dataset) for _ in range(num)]


def skip_unless_prepared(name):
    if name in TFDS_NAMES:
        tfds = pytest.importorskip("tensorflow_datasets")
        if not tfds.builder(TFDS_NAMES[name]).is_prepared():
            pytest.skip(f"TFDS has not prepared {TFDS_NAMES[name]} here")


@pytest.fixture
def grey(monkeypatch):
    """A dynamically binarized dataset, 8 copies an image of a ramp of grey levels."""
    ramp = np.linspace(0, 255, 64).astype(np.uint8).reshape(1, 8, 8, 1)
    definition = definitions.Definition(
        datasets.DatasetInfo(
            name="grey",
            image_shape=(8, 8, 1),
            levels=2,
            splits={"train": 1437, "test": 500},
            protocol="",
            binarization_seed=5,
        ),
        lambda split: images.ImageArray(
            np.repeat(ramp, {"train": 1437, "test": 500}[split], axis=0)
        ),
    )
    monkeypatch.setattr(definitions, "find", lambda name: definition)
    return ramp[0] / 255.0


SPLITS = [
    pytest.param(
        name,
        split,
        marks=[pytest.mark.slow] if size > 20_000 else [],
        id=f"{name}-{split}",
    )
    for name in ("digits", *TFDS_NAMES)
    for split, size in datasets.info(name).splits.items()
]


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_a_split_is_what_info_says(name, split):
    skip_unless_prepared(name)
    info = datasets.info(name)
    size = info.splits[split]
    dataset = datasets.load_dataset(name, split, batch_size=999)
    assert dataset.element_spec.shape.as_list() == [None, *info.image_shape]
    batches = arrays(dataset)
    assert len(batches) == dataset.cardinality() == -(-size // 999)
    every = np.concatenate(batches)
    assert every.shape == (size, *info.image_shape) and every.dtype == np.uint8
    assert set(np.unique(every)) == {0, 1}
    assert 0.1 < every.mean() < 0.4


def test_protocol_sizes():
    sizes = {n: dict(datasets.info(n).splits) for n in ("mnist_static", "digits")}
    assert sizes == {
        "mnist_static": {"train": 50_000, "validation": 10_000, "test": 10_000},
        "digits": {"train": 1_437, "test": 360},
    }
    dynamic = datasets.info("mnist_dynamic")
    assert dynamic.splits == {"train": 55_000, "validation": 5_000, "test": 10_000}
    assert dynamic.binarization_seed is not None


def test_digits_are_scikit_learns():
    import sklearn.datasets

    expected = sklearn.datasets.load_digits().images >= 8
    train, test = (
        np.concatenate(arrays(datasets.load_dataset("digits", split, batch_size=500)))
        for split in ("train", "test")
    )
    np.testing.assert_array_equal(np.concatenate([train, test])[..., 0], expected)


def test_records_are_frozen():
    info = datasets.info("digits")
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.levels = 256
    with pytest.raises(TypeError):
        info.splits["validation"] = 1


def test_every_named_dataset_is_listed():
    names = datasets.list_datasets()
    assert {"mnist_static", "mnist_dynamic", "digits"} < set(names)
    for name in names:
        if not name.endswith(":PATH"):
            assert datasets.info(name).name == name


# The order, and the noise.


def test_an_epoch_is_a_permutation_of_the_images():
    train = datasets.load_dataset("digits", "train", batch_size=99)
    train = np.concatenate(arrays(train))
    (epoch,) = passes()
    epoch = np.concatenate(epoch)
    assert not np.array_equal(epoch, train)

    def rows(array):
        return sorted(map(bytes, array.reshape(len(array), -1)))

    assert rows(epoch) == rows(train)


def test_the_order_is_a_function_of_seed_and_epoch():
    first, second = passes(num=2)
    again = passes(num=2)
    for a, b in zip(first + second, again[0] + again[1], strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[0], second[0])
    assert not np.array_equal(first[0], passes(seed=4)[0][0])
    assert [len(batch) for batch in first] == [100] * 14 + [37]


@pytest.mark.parametrize("position", [1, 9, 14, 15, 22])
def test_a_pass_begins_anywhere_and_ends_with_its_epoch(position):
    two_epochs = list(itertools.chain(*passes(num=2)))
    (rest,) = passes(position=position)
    end = 15 if position < 15 else 30
    assert len(rest) == end - position
    for a, b in zip(rest, two_epochs[position:end], strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_stream_has_the_cardinality_of_an_epoch():
    dataset = datasets.training_stream(
        "digits", batch_size=100, seed=0, position=lambda: 7
    )
    assert dataset.cardinality() == 15
    assert dataset.map(lambda x: x).cardinality() == 15


def test_load_dataset_has_an_order_of_its_own_each_pass():
    dataset = datasets.load_dataset(
        "digits", "train", batch_size=100, shuffle=True, seed=3
    )
    for expected in passes(num=2):
        for a, b in zip(arrays(dataset), expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_binarization_has_the_right_mean(grey):
    (epoch,) = passes("grey")
    mean = np.concatenate(epoch).mean(axis=0)
    error = np.sqrt(grey * (1 - grey) / 1437)
    assert np.all(np.abs(mean - grey) <= 5 * error)  # exact at levels 0 and 255


def test_binarization_is_a_function_of_seed_epoch_and_image(grey):
    def train(batch_size, seed=0):
        dataset = datasets.load_dataset(
            "grey", "train", batch_size=batch_size, seed=seed
        )
        return [np.concatenate(arrays(dataset)) for _ in range(2)]

    first, second = train(100)
    np.testing.assert_array_equal(train(7), [first, second])
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, train(100, seed=1)[0])
    assert not np.array_equal(first[0], first[1])


def test_the_noise_of_an_image_does_not_depend_on_the_order(grey):
    unshuffled = datasets.load_dataset("grey", "train", batch_size=1437, seed=3)
    (expected,) = arrays(unshuffled)
    order = tf.random.experimental.index_shuffle(tf.range(1437), [3, 0], 1436)
    (epoch,) = passes("grey")
    np.testing.assert_array_equal(np.concatenate(epoch), expected[order.numpy()])


def test_evaluation_splits_are_binarized_once(grey):
    first, second = (
        datasets.load_dataset("grey", "test", batch_size=size, seed=seed)
        for size, seed in ((100, 0), (33, 9))
    )
    once = np.concatenate(arrays(first))
    np.testing.assert_array_equal(np.concatenate(arrays(first)), once)
    np.testing.assert_array_equal(np.concatenate(arrays(second)), once)
    assert not np.array_equal(once[0], once[1])


def test_the_mnist_binarization_has_not_changed():
    skip_unless_prepared("mnist_dynamic")
    dataset = datasets.load_dataset("mnist_dynamic", "test", batch_size=1000)
    assert sum(int(batch.sum()) for batch in arrays(dataset)) == MNIST_TEST_ONES


# Image folders.


def write_png(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tf.io.encode_png(array.astype(np.uint8)).numpy())


def test_image_folder_is_sorted_and_exact(tmp_path):
    expected = np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), np.uint8)
    for name, image in zip("badce", expected[[1, 0, 3, 2, 4]], strict=True):
        write_png(tmp_path / "faces" / f"{name}.png", image)
    (tmp_path / "notes.txt").write_text("no image")
    name = f"image_folder:{tmp_path}"
    info = datasets.info(name)
    assert (info.image_shape, info.levels) == ((6, 4, 3), 256)
    assert info.splits == {"train": 5}
    batches = arrays(datasets.load_dataset(name, "train", batch_size=2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate(batches), expected)
    shuffled = datasets.training_stream(name, batch_size=5, seed=0, position=lambda: 0)
    assert shuffled.element_spec.shape.as_list() == [None, 6, 4, 3]
    assert arrays(shuffled)[0].sum() == expected.sum()


def test_image_folder_options(tmp_path):
    wide = np.zeros((8, 16, 3))
    wide[:, 4:12] = 200  # the square at the centre
    write_png(tmp_path / "train" / "wide.png", wide)
    jpeg = tf.io.encode_jpeg(np.full((5, 5, 1), 90, np.uint8))
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "grey.JPG").write_bytes(jpeg.numpy())
    name = f"image_folder:{tmp_path}"
    options = {"size": 4, "channels": 1, "levels": 2}
    assert datasets.info(name, **options).splits == {"train": 1, "test": 1}
    for split, value in (("train", 1), ("test", 0)):
        (image,) = arrays(datasets.load_dataset(name, split, batch_size=1, **options))
        np.testing.assert_array_equal(image, np.full((1, 4, 4, 1), value))


def test_image_folder_errors_name_the_file(tmp_path):
    name = f"image_folder:{tmp_path}"
    with pytest.raises(ValueError, match="holds none"):
        datasets.info(name)
    write_png(tmp_path / "a.png", np.zeros((4, 4, 1)))
    write_png(tmp_path / "b.png", np.zeros((4, 5, 1)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="b.png.*4x5"):
        arrays(datasets.load_dataset(name, "train", batch_size=2))
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    with pytest.raises(tf.errors.InvalidArgumentError, match="b.png.*repair"):
        arrays(datasets.load_dataset(name, "train", batch_size=2))
    with pytest.raises(NotADirectoryError, match="nowhere"):
        datasets.info(f"image_folder:{tmp_path}/nowhere")


@pytest.mark.parametrize(
    "options", [{"size": 0}, {"size": (4, 4, 1)}, {"channels": 2}, {"levels": 16}]
)
def test_image_folder_refuses_options_out_of_range(tmp_path, options):
    write_png(tmp_path / "a.png", np.zeros((4, 4, 1)))
    with pytest.raises(ValueError, match=f"Received: {next(iter(options))}"):
        datasets.info(f"image_folder:{tmp_path}", **options)


# Errors.


def test_unknown_name_suggests_near_ones():
    with pytest.raises(ValueError, match="'mnist_statik'.*Did you mean mnist_static"):
        datasets.load_dataset("mnist_statik", "train", batch_size=1)


def test_unknown_split_lists_those_there_are():
    with pytest.raises(ValueError, match="'validation'. It has: train, test"):
        datasets.load_dataset("digits", "validation", batch_size=1)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "8", None, True])
def test_batch_size_is_a_positive_integer(batch_size):
    with pytest.raises(ValueError, match="batch_size must be a positive integer"):
        datasets.load_dataset("digits", "train", batch_size=batch_size)


def test_options_are_for_image_folders():
    with pytest.raises(ValueError, match="'digits' takes no options"):
        datasets.load_dataset("digits", "train", batch_size=1, size=8)


def test_a_dataset_that_is_out_of_reach_is_one_error_at_once(tmp_path):
    code = "import vaezoo\nvaezoo.load_dataset('mnist_static', 'train', batch_size=1)\n"
    closed = "http://127.0.0.1:9"  # nothing listens there
    environment = os.environ | {
        "TFDS_DATA_DIR": str(tmp_path),
        "http_proxy": closed,
        "https_proxy": closed,
    }
    start = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert time.monotonic() - start < 60
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert "DatasetNotFoundError" in last
    assert "mnist_static" in last and str(tmp_path) in last and "TFDS_DATA_DIR" in last
    assert result.stderr.count("Traceback") == 1


def test_importing_datasets_is_light():
    code = (
        "import sys, vaezoo.datasets as d; d.info('mnist_static'); d.list_datasets()\n"
        "heavy = {'tensorflow', 'tensorflow_datasets', 'sklearn', 'keras'}\n"
        "assert not heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
