import dataclasses
import functools
import hashlib
import itertools
import os
import pathlib
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from replicas import check_replicas

from prepared import TFDS_NAMES, published_files, skip_unless_prepared
from vaezoo import datasets
from vaezoo.datasets import definitions, images, tfds_source

# Of the test splits: the number of ones, after the fixed binarization if any.
TEST_ONES = {
    "mnist_dynamic": 1_039_083,
    "caltech101": 833_778,
    "omniglot_small": 60_669,
}


def arrays(dataset):
    return [batch.numpy() for batch in dataset]


def passes(name="digits", *, position=0, num=1, batch_size=100, seed=3):
    """The batches of `num` epochs of a training stream from `position`."""
    dataset, num_steps = datasets.training_stream(
        name, batch_size=batch_size, seed=seed, position=lambda: position
    )
    assert num_steps == -(-1437 // batch_size)
    batches = arrays(dataset.take(num * num_steps))
    return [batches[i * num_steps : (i + 1) * num_steps] for i in range(num)]


def load(name, split, **kwargs):
    return np.concatenate(
        arrays(datasets.load_dataset(name, split, batch_size=500, **kwargs))
    )


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
    assert 0.05 < every.mean() < 0.5


def test_protocol_sizes():
    sizes = {n: dict(datasets.info(n).splits) for n in ("mnist_static", "digits")}
    assert sizes == {
        "mnist_static": {"train": 50_000, "validation": 10_000, "test": 10_000},
        "digits": {"train": 1_437, "test": 360},
    }
    dynamic = datasets.info("mnist_dynamic")
    assert dynamic.splits == {"train": 55_000, "validation": 5_000, "test": 10_000}
    assert dynamic.binarization_seed is not None


def test_protocol_sizes_of_small_datasets():
    sizes = {n: dict(datasets.info(n).splits) for n in TFDS_NAMES}
    assert sizes["caltech101"] == {"train": 4_100, "validation": 2_264, "test": 2_307}
    assert sizes["omniglot"] == {"train": 23_000, "validation": 1_345, "test": 8_070}
    assert sizes["omniglot_small"] == {
        "train": 242 * 14,
        "validation": 242 * 2,
        "test": 242 * 4,
    }
    seeds = {n: datasets.info(n).binarization_seed for n in TFDS_NAMES}
    assert seeds["caltech101"] is None
    assert None not in (seeds["omniglot"], seeds["omniglot_small"])


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
    assert {"digits", *TFDS_NAMES} < set(names)
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


@pytest.mark.parametrize("position", [1, 9, 14, 15])
def test_a_pass_begins_anywhere(position):
    two_epochs = list(itertools.chain(*passes(num=2)))
    (rest,) = passes(position=position)
    for a, b in zip(rest, two_epochs[position:], strict=False):
        np.testing.assert_array_equal(a, b)
    assert len(rest) == 15


def test_each_replica_reads_its_rows(grey):
    """In the order of the replicas; all together are the batch, the ragged one too."""
    (whole,) = passes("grey")
    check_replicas("grey", whole, batch_size=100, seed=3)


def test_a_last_batch_may_be_smaller_than_the_replicas_are_many(tmp_path):
    for index in range(7):
        image = np.full([4, 4, 1], index, np.uint8)
        (tmp_path / f"{index}.png").write_bytes(tf.io.encode_png(image).numpy())
    name = f"image_folder:{tmp_path}"
    stream, num_steps = datasets.training_stream(
        name, batch_size=5, seed=3, position=lambda: 0
    )
    batches = arrays(stream.take(num_steps))
    assert [len(batch) for batch in batches] == [5, 2]
    check_replicas(name, batches, batch_size=5, seed=3)


def test_load_dataset_has_the_cardinality_of_an_epoch():
    dataset = datasets.load_dataset("digits", "train", batch_size=100)
    assert dataset.cardinality() == dataset.map(lambda x: x).cardinality() == 15


def test_load_dataset_has_an_order_of_its_own_each_pass():
    dataset = datasets.load_dataset(
        "digits", "train", batch_size=100, shuffle=True, seed=3
    )
    for expected in passes(num=2):
        for a, b in zip(arrays(dataset), expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_crops_are_a_function_of_seed_epoch_and_index():
    """Squares of the images, everywhere in them, as far as the stream has come."""

    def crops(position=0, num=30, seed=3, size=5):
        options = {"batch_size": 100, "seed": seed, "crop_size": size}
        dataset, _ = datasets.training_stream(
            "digits", position=lambda: position, **options
        )
        return arrays(dataset.take(num))

    whole = [batch for epoch in passes(num=2) for batch in epoch]
    found = crops()
    for batch, cut in zip(whole, found, strict=True):
        assert cut.shape == (len(batch), 5, 5, 1) and cut.dtype == np.uint8
    places = np.zeros([4, 4])
    for image, cut in zip(np.concatenate(whole), np.concatenate(found), strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(image[..., 0], (5, 5))
        matches = np.all(windows == cut[..., 0], axis=(2, 3))
        assert matches.any()
        places += matches / matches.sum()
    # 2,874 images; 5 standard errors of a count of one in 16, for those without ties.
    np.testing.assert_allclose(places, 2874 / 16, atol=5 * np.sqrt(2874 / 16))

    for a, b in zip(crops(position=17, num=13), found[17:], strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(crops(num=2, size=8), whole, strict=False):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(crops(num=1, seed=4)[0], found[0])


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


@pytest.mark.parametrize("name", TEST_ONES)
def test_the_test_images_have_not_changed(name):
    skip_unless_prepared(name)
    assert int(load(name, "test").sum()) == TEST_ONES[name]


def test_only_training_images_are_drawn_anew():
    skip_unless_prepared("omniglot_small")
    for split, same in (("train", False), ("validation", True)):
        first, second = (load("omniglot_small", split, seed=seed) for seed in (0, 1))
        assert np.array_equal(first, second) == same


# Our TFDS builders.


def test_silhouettes_are_upright():
    # Photographs have a left and a right that are more alike than top and bottom.
    skip_unless_prepared("caltech101")
    x = load("caltech101", "test").astype(float)
    mirrored, upside_down = x[:, :, ::-1], x[:, ::-1]
    assert np.abs(x - mirrored).mean() < 0.75 * np.abs(x - upside_down).mean()


def test_silhouettes_are_read_column_by_column_and_inverted(tmp_path):
    import scipy.io

    from vaezoo.datasets.builders.caltech101 import read_silhouettes

    objects = np.random.default_rng(0).integers(0, 2, (6, 28, 28), np.uint8)
    rows = np.stack([1 - image.flatten(order="F") for image in objects])
    keys = {"train": "train_data", "validation": "val_data", "test": "test_data"}
    matrices = {key: rows[i::3] for i, key in enumerate(keys.values())}
    scipy.io.savemat(tmp_path / "a.mat", matrices)
    read = read_silhouettes(tmp_path / "a.mat")
    for i, split in enumerate(keys):
        assert read[split].dtype == np.uint8
        np.testing.assert_array_equal(read[split][..., 0], objects[i::3])


def test_prepared_silhouettes_are_the_file_in_its_order():
    from vaezoo.datasets.builders.caltech101 import read_silhouettes

    (path,) = published_files("caltech101")
    for split, expected in read_silhouettes(path).items():
        np.testing.assert_array_equal(load("caltech101", split), expected)


@pytest.mark.parametrize("name", ["caltech101", "omniglot_small"])
def test_a_file_with_another_checksum_is_refused(manual, name):
    builder = tfds_source.builder(TFDS_NAMES[name])
    for file in tfds_source.filenames(builder).values():
        (manual / file).write_bytes(b"not the published file")
    with pytest.raises(datasets.DatasetNotFoundError) as error:
        tfds_source.read(name, TFDS_NAMES[name], "test", 1, image_shape=(28, 28, 1))
    for part in (name, "wrong checksum", str(manual), "whole and unchanged"):
        assert part in str(error.value)
    assert not list(pathlib.Path(builder.data_dir_root, builder.name).glob("*"))


def write_chardata(path, *, train=40, test=9, seed=0, **replaced):
    """Writes a file like Burda's; returns its images, upright, as grey levels."""
    import scipy.io

    levels = np.random.default_rng(seed).integers(0, 256, (train + test, 28, 28))
    columns = np.stack([x.flatten(order="F") for x in levels], axis=1) / 255
    matrices = {"data": columns[:, :train], "testdata": columns[:, train:]}
    matrices |= {"target": np.zeros((50, train)), **replaced}
    scipy.io.savemat(path, matrices)
    return levels[:train, ..., np.newaxis], levels[train:, ..., np.newaxis]


def test_chardata_is_upright_shuffled_and_recorded(manual):
    path = manual / "chardata.mat"
    train, test = write_chardata(path)
    np.random.RandomState(123).shuffle(train)
    for split, expected in (
        ("train[:30]", train[:30]),
        ("train[30:]", train[30:]),
        ("test", test),
    ):
        read = tfds_source.read(
            "omniglot", "omniglot28", split, len(expected), image_shape=(28, 28, 1)
        )
        images = read.gather(tf.range(len(read))).numpy()
        np.testing.assert_array_equal(images, expected)
    recorded = tfds_source.builder("omniglot28").info.metadata
    assert recorded["size"] == path.stat().st_size
    assert recorded["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match="must have 8070 images. Received: 9 in"):
        datasets.load_dataset("omniglot", "test", batch_size=1)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"testdata": np.zeros((9, 784))}, r"testdata.shape=\(9, 784\)"),
        ({"data": np.full((784, 40), 255.0)}, "data from 0.0 to 255.0"),
        ({"data": np.full((784, 40), np.nan)}, "data from nan to nan"),
    ],
)
def test_another_chardata_is_refused(tmp_path, replaced, message):
    from vaezoo.datasets.builders.omniglot import read_chardata

    write_chardata(tmp_path / "chardata.mat", **replaced)
    with pytest.raises(ValueError, match=message):
        read_chardata(tmp_path / "chardata.mat")


def test_without_chardata_the_error_says_where_to_put_it(manual):
    with pytest.raises(datasets.DatasetNotFoundError) as error:
        datasets.load_dataset("omniglot", "train", batch_size=1)
    assert "(chardata.mat)" in str(error.value) and str(manual) in str(error.value)
    assert "github.com" in str(error.value)


def test_shrink_averages_areas():
    from vaezoo.datasets.builders.omniglot import shrink

    ink = np.random.default_rng(0).random((105, 105)) < 0.3
    ink[60:] = 1
    bounds = np.arange(29) * 3.75
    share = np.clip(
        np.minimum(bounds[1:, None], np.arange(105) + 1)
        - np.maximum(bounds[:-1, None], np.arange(105)),
        0,
        1,
    )
    expected = np.rint(share @ ink @ share.T / 3.75**2 * 255)
    levels = shrink(ink)
    assert levels.dtype == np.uint8
    np.testing.assert_array_equal(levels[..., 0], expected)
    assert (levels[16:] == 255).all()


def test_a_drawing_in_both_zips_is_read_once(tmp_path):
    from vaezoo.datasets.builders.omniglot import read_drawings

    for name, alphabets in (("a", ("Greek", "Latin")), ("b", ("Greek", "Tagalog"))):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for alphabet in alphabets:
                for drawer in (2, 1):
                    file = f"{name}/{alphabet}/character01/0394_{drawer:02}.png"
                    archive.writestr(file, f"{alphabet} {drawer}")
    drawings = read_drawings(tmp_path / "b", tmp_path / "a")
    assert list(drawings) == [
        (alphabet, "character01", drawer)
        for alphabet in ("Greek", "Latin", "Tagalog")
        for drawer in (1, 2)
    ]
    assert drawings["Latin", "character01", 2] == b"Latin 2"


def test_small_omniglot_is_split_by_drawer():
    from vaezoo.datasets.builders import omniglot

    drawings = omniglot.read_drawings(*published_files("omniglot_small"))
    assert len({key[:2] for key in drawings}) == 242
    assert len({alphabet for alphabet, _, _ in drawings}) == 8
    drawers = {
        "train": range(1, 15),
        "validation": range(15, 17),
        "test": range(17, 21),
    }
    for split, those in drawers.items():
        pngs = [png for key, png in drawings.items() if key[-1] in those]
        stored = definitions.read(definitions.find("omniglot_small"), split)
        assert len(stored) == len(pngs) == datasets.info("omniglot_small").splits[split]
        for i in (0, len(pngs) // 2, len(pngs) - 1):
            white = tf.io.decode_png(pngs[i])[..., 0].numpy()
            (levels,) = stored.gather([i]).numpy()
            np.testing.assert_array_equal(levels, omniglot.shrink(white == 0))
            assert 0.01 < levels.mean() / 255 < 0.3  # ink is bright, and sparse


# Errors.


def test_unknown_name_suggests_near_ones():
    with pytest.raises(ValueError, match="'mnist_statik'.*Did you mean mnist_static"):
        datasets.load_dataset("mnist_statik", "train", batch_size=1)


def test_splits_are_joined_in_order():
    def load(split, **options):
        data = datasets.load_dataset("digits", split, batch_size=400, **options)
        return np.concatenate([batch.numpy() for batch in data])

    parts = np.concatenate([load("train"), load("test")])
    np.testing.assert_array_equal(load("train+test"), parts)
    shuffled = load("train+test", shuffle=True)
    assert np.any(shuffled != parts)
    assert sorted(map(bytes, shuffled)) == sorted(map(bytes, parts))
    with pytest.raises(ValueError, match="no such split"):
        load("train+train")


def test_unknown_split_lists_those_there_are():
    with pytest.raises(ValueError, match="'validation'. It has: train, test"):
        datasets.load_dataset("digits", "validation", batch_size=1)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "8", None, True])
def test_batch_size_is_a_positive_integer(batch_size):
    with pytest.raises(ValueError, match="`batch_size` must be a positive integer"):
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
        "print(*sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    heavy = {"tensorflow", "tensorflow_datasets", "sklearn", "keras"}
    assert heavy.isdisjoint(result.stdout.split())


def test_large_datasets_are_read_from_a_file(tmp_path, monkeypatch):
    """Copied once beside TFDS's files, then addressed by index; never half-written."""
    import tensorflow_datasets as tfds

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    levels = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), np.uint8)

    class MappedTestImages(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            feature = tfds.features.Image(shape=(4, 4, 3))
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict({"image": feature}),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from ((i, {"image": image}) for i, image in enumerate(levels))

    monkeypatch.setattr(
        tfds_source,
        "builder",
        lambda name: MappedTestImages(data_dir=str(tmp_path)),
    )
    read = functools.partial(
        tfds_source.read,
        "mapped",
        "mapped_test_images",
        "train",
        image_shape=(4, 4, 3),
    )
    stored = read(7, in_memory=False)
    assert len(stored) == 7
    gathered = tf.function(stored.gather)(tf.constant([5, 0, 5], tf.int64))
    assert gathered.shape == (3, 4, 4, 3)
    np.testing.assert_array_equal(gathered, levels[[5, 0, 5]])
    (file,) = tmp_path.rglob("vaezoo-train.npy")
    before = file.stat().st_mtime_ns
    np.testing.assert_array_equal(
        read(7, in_memory=False).gather(tf.range(7)), read(7).gather(tf.range(7))
    )
    assert file.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="must have 8 images"):
        read(8, in_memory=False)


def test_asking_for_a_dataset_that_is_not_prepared_is_silent(caplog):
    for name in ("omniglot28", "downsampled_imagenet/32x32"):
        tfds_source.builder(name)
    assert "Variant folder" not in caplog.text
