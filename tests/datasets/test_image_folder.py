"""Folders of image files: what is found, what is read, what is said."""

import os
import re
import warnings

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from vaezoo import datasets
from vaezoo.datasets import image_folder

pytestmark = pytest.mark.filterwarnings("ignore:Image folder")

RGB = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)


def write(path, array=RGB, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(path, **options)


def write_wide_png(path, array):
    path.write_bytes(tf.io.encode_png(array.astype(np.uint16)).numpy())


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def images(folder, split="train", **options):
    """All images of a split, and the warnings on the way."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = datasets.load_dataset(
            f"image_folder:{folder}", split, batch_size=100, **options
        )
    said = [str(w.message) for w in caught if w.category is UserWarning]
    return np.concatenate([batch.numpy() for batch in data]), said


def splits(folder):
    return dict(datasets.info(f"image_folder:{folder}").splits)


def names(folder, split="train"):
    folder = image_folder.ImageFolder.open(folder)
    return [path.name for path in folder.paths[split]]


# Which files there are.


def test_it_is_sorted_and_exact(tmp_path):
    expected = np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), np.uint8)
    for name, image in zip("badce", expected[[1, 0, 3, 2, 4]], strict=True):
        write(tmp_path / "faces" / f"{name}.png", image)
    (tmp_path / "notes.txt").write_text("no image")
    name = f"image_folder:{tmp_path}"
    info = datasets.info(name)
    assert (info.image_shape, info.levels) == ((6, 4, 3), 256)
    assert info.splits == {"train": 5}
    found, said = images(tmp_path)
    np.testing.assert_array_equal(found, expected)
    assert not said
    shuffled, _ = datasets.training_stream(
        name, batch_size=5, seed=0, position=lambda: 0
    )
    assert shuffled.element_spec.shape.as_list() == [None, 6, 4, 3]
    assert next(iter(shuffled)).numpy().sum() == expected.sum()


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train", "val", "test"),
        ("training", "valid", "testing"),
        ("Train", "Validation", "TEST"),
        ("train2017", "val2017", "test_images"),
        ("images_train", "dev", "test-set"),
        ("trainval", "val set", "eval"),
    ],
)
def test_splits_have_many_names(tmp_path, train, validation, test):
    for count, folder in enumerate((train, validation, test), start=1):
        for i in range(count):
            write(tmp_path / folder / f"{i}.png")
    assert splits(tmp_path) == {"train": 1, "validation": 2, "test": 3}
    assert list(splits(tmp_path)) == ["train", "validation", "test"]


def test_classes_are_no_splits(tmp_path):
    for folder in ("bullet_train", "test_tube", "valley", "trains"):
        write(tmp_path / folder / "a.png")
    assert splits(tmp_path) == {"train": 4}


def test_two_folders_of_one_split_are_refused(tmp_path):
    write(tmp_path / "val" / "a.png")
    write(tmp_path / "Validation" / "a.png")
    with pytest.raises(ValueError, match="'Validation' and 'val' .* both validation"):
        splits(tmp_path)


def test_splits_deeper_down_are_refused(tmp_path):
    """Their test images would be trained on."""
    for split in ("train", "test"):
        write(tmp_path / "data" / split / "cats" / "a.png")
    advice = re.escape(f"image_folder:{tmp_path / 'data'}.")
    with pytest.raises(ValueError, match=f"directly in it.*{advice}"):
        splits(tmp_path)
    assert splits(tmp_path / "data") == {"train": 1, "test": 1}


def test_what_is_outside_of_the_splits_is_counted(tmp_path):
    for path in ("train/a.png", "test/a.png", "extra/a.png", "b.png"):
        write(tmp_path / path)
    _, (said,) = images(tmp_path)
    assert "2 files outside of the splits' folders left out: 'b.png'" in said


def test_hidden_files_are_left_out(tmp_path):
    write(tmp_path / "a.png")
    for hidden in (".ipynb_checkpoints/a.png", "__MACOSX/a.png", "._a.png"):
        write(tmp_path / hidden)
    found, said = images(tmp_path)
    assert len(found) == 1 and not said


def test_links_are_followed(tmp_path):
    write(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "folder" / "classes").mkdir(parents=True)
    (tmp_path / "folder" / "classes" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "folder")
    assert splits(tmp_path / "folder") == {"train": 1}


def test_names_that_are_not_utf8(tmp_path):
    write(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    for name, content in ((b"caf\xe9.png", whole), (b"bad\xe9.png", whole[:30])):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(content)
    found, (said,) = images(tmp_path)
    np.testing.assert_array_equal(found, [RGB, RGB])
    assert r"'bad\udce9.png'" in said
    said.encode()


# What is in them.


def test_broken_files_are_counted_in_one_warning(tmp_path):
    write(tmp_path / "whole.png")
    big = RGB.repeat(50, 0).repeat(50, 1)
    write(tmp_path / "photo.jpg", big)
    write(tmp_path / "picture.png", big)
    truncate(tmp_path / "photo.jpg")
    truncate(tmp_path / "picture.png")
    (tmp_path / "empty.webp").write_bytes(b"")
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere")
    found, (said,) = images(tmp_path)
    assert len(found) == 1
    assert "4 files that cannot be read left out: 'empty.webp' (no image" in said
    assert "and 1 more" in said and "\n" not in said
    info = datasets.info(f"image_folder:{tmp_path}")
    assert "without 4 files that cannot be read" in info.protocol
    with pytest.raises(ValueError, match="4 files that cannot be read") as refused:
        images(tmp_path, unreadable="refuse")
    assert "\n" not in str(refused.value)


def test_a_folder_of_broken_files_is_empty(tmp_path):
    write(tmp_path / "a.png")
    truncate(tmp_path / "a.png")
    with pytest.raises(ValueError, match="holds none but 1 file that cannot be read"):
        splits(tmp_path)


def test_a_file_that_changes_while_it_is_read_is_one_sentence(tmp_path):
    write(tmp_path / "a.png")
    data = datasets.load_dataset(f"image_folder:{tmp_path}", "train", batch_size=1)
    truncate(tmp_path / "a.png")
    with pytest.raises(tf.errors.OpError) as refused:
        list(data)
    sentence = image_folder.refusal_in(refused.value)
    assert re.fullmatch("A file .* must stay as it is .*a.png.*", sentence)


@pytest.mark.parametrize("kind", ["bmp", "gif", "ppm", "png", "tiff", "tif", "webp"])
def test_kinds_without_loss(tmp_path, kind):
    options = {"lossless": True} if kind == "webp" else {}
    write(tmp_path / f"a.{kind}", **options)
    (found,), said = images(tmp_path)
    np.testing.assert_array_equal(found, RGB)
    assert not said


def test_jpeg_and_palettes_are_near(tmp_path):
    smooth = np.full((8, 8, 3), (200, 100, 50), np.uint8)
    write(tmp_path / "a.JPG", smooth)
    write(tmp_path / "b.jpeg", Image.fromarray(smooth).convert("CMYK"))
    write(tmp_path / "c.png", Image.fromarray(smooth).quantize(4))
    (tmp_path / "a.JPG").rename(tmp_path / "really_a_jpeg.png")
    found, _ = images(tmp_path)
    np.testing.assert_allclose(found, np.broadcast_to(smooth, found.shape), atol=8)


def test_other_kinds_of_images_are_counted(tmp_path):
    write(tmp_path / "a.png")
    for name in ("b.heic", "c.HEIC", "d.svg", "labels.csv", "LICENSE"):
        (tmp_path / name).write_bytes(b"?")
    _, (said,) = images(tmp_path)
    assert "3 files of kinds that are not read left out (2 .heic, 1 .svg)" in said
    assert "labels" not in said and "'b.heic'" in said


@pytest.mark.parametrize("background", ["white", "black"])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_shows_the_background(tmp_path, background, channels):
    level = {"white": 255, "black": 0}[background]
    alpha = np.array([0, 128, 255], np.uint8).reshape(1, 3, 1)
    drawing = np.concatenate([np.full((1, 3, 3), 40, np.uint8), alpha], axis=-1)
    write(tmp_path / "a.png", drawing)
    write(tmp_path / "b.png", drawing[..., 2:])  # grey with alpha
    write(tmp_path / "c.png", np.array([[0, 1, 2]], np.uint8), transparency=0)
    found, _ = images(tmp_path, channels=channels, background=background)
    between = round(40 * 128 / 255 + level * 127 / 255)
    for image in found[:2]:
        np.testing.assert_array_equal(
            image, np.repeat([[[level], [between], [40]]], channels, axis=-1)
        )
    np.testing.assert_array_equal(found[2, 0, :, 0], [level, 1, 2])
    info = datasets.info(f"image_folder:{tmp_path}", background=background)
    assert f"transparent ones over {background}" in info.protocol


def test_exif_orientation_is_applied(tmp_path):
    turned = np.rot90(RGB)  # as a camera held upright stores it
    exif = Image.Exif()
    exif[274] = 6  # turn it clockwise to see it
    write(tmp_path / "a.png", turned, exif=exif)
    write(tmp_path / "b.png")
    found, _ = images(tmp_path)
    np.testing.assert_array_equal(found, [RGB, RGB])


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_levels_in_16_bits_have_the_bits_that_they_use(tmp_path, bits):
    levels = RGB[..., :1].astype(np.int64)
    levels[0, 0] = 255
    stored = np.rint(levels * (2**bits - 1) / 255).astype(np.uint16)
    write_wide_png(tmp_path / "a.png", stored)
    write_wide_png(tmp_path / "b.png", np.repeat(stored, 3, axis=-1))
    write(tmp_path / "c.tiff", stored[..., 0])
    opaque = np.full_like(stored, 65535)
    write_wide_png(tmp_path / "d.png", np.concatenate([stored, opaque], axis=-1))
    found, said = images(tmp_path, channels=1)
    np.testing.assert_array_equal(found, np.broadcast_to(levels, found.shape))
    assert len(said) == (bits < 16)
    assert not said or f"4 files of 16 bits hold levels of {bits} bits" in said[0]
    info = datasets.info(f"image_folder:{tmp_path}")
    assert f"16-bit files as levels of {bits} bits" in info.protocol
    dark, said = images(tmp_path, channels=1, bits=16)
    assert not said and dark.max() == round(255 * (2**bits - 1) / 65535)


def test_levels_without_a_range_are_refused(tmp_path):
    write(tmp_path / "a.tiff", RGB[..., 0])
    write(tmp_path / "b.tiff", RGB[..., 0].astype(np.float32))
    _, (said,) = images(tmp_path)
    assert "'b.tiff' (levels in floating point, of no known range)" in said


# Options.


def test_size_channels_and_levels(tmp_path):
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = 200  # the square at the centre
    write(tmp_path / "train" / "wide.png", wide)
    write(tmp_path / "test" / "grey.JPG", np.full((5, 5), 90, np.uint8))
    for split, value in (("train", 1), ("test", 0)):
        found, _ = images(tmp_path, split, size=4, channels=1, levels=2)
        np.testing.assert_array_equal(found, np.full((1, 4, 4, 1), value))


def test_small_pictures_are_enlarged_and_counted(tmp_path):
    write(tmp_path / "a.png", np.full((8, 12, 3), 7, np.uint8))
    write(tmp_path / "b.png", np.full((9, 7, 3), 8, np.uint8))
    found, (said,) = images(tmp_path, size=8)
    assert "1 file with a side shorter than" in said and "'b.png' (9x7)" in said
    np.testing.assert_array_equal(found[:, :, :, 0], np.full((2, 8, 8), [[[7]], [[8]]]))
    assert not images(tmp_path, size=7)[1]


def test_options_in_the_name(tmp_path):
    write(tmp_path / "a.png")
    write(tmp_path / "b.png")
    truncate(tmp_path / "b.png")
    with pytest.raises(ValueError, match="1 file that cannot be read"):
        datasets.info(f"image_folder:{tmp_path}?unreadable=refuse")
    name = f"image_folder:{tmp_path}?unreadable=skip&background=black&bits=12"
    info = datasets.info(name)
    assert info.name == name and "over black" in info.protocol
    with pytest.raises(
        ValueError, match="`option` must be 'unreadable', 'background' or"
    ):
        datasets.info(f"image_folder:{tmp_path}?size=3")
    write(tmp_path / "what?" / "a.png")
    assert splits(tmp_path / "what?") == {"train": 1}


def test_without_a_size_all_files_have_one(tmp_path):
    write(tmp_path / "a.png")
    write(tmp_path / "b.png", RGB[1:])
    with pytest.raises(ValueError, match=r"the first, 6x4.*1 file .*'b.png' \(5x4\)"):
        splits(tmp_path)


def test_a_folder_without_images(tmp_path):
    with pytest.raises(ValueError, match="holds none for the split 'train'. Put"):
        splits(tmp_path)
    with pytest.raises(NotADirectoryError, match="nowhere', which is not there. Give"):
        splits(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="which is a URL"):
        splits("gs://bucket/images")


def test_a_folder_in_the_home_folder(tmp_path, monkeypatch):
    write(tmp_path / "pictures" / "a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert splits("~/pictures") == {"train": 1}


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"size": (4, 4, 1)},
        {"channels": 2},
        {"levels": 16},
        {"unreadable": "ignore"},
        {"background": "red"},
        {"bits": 7},
    ],
)
def test_options_out_of_range_are_refused(tmp_path, options):
    write(tmp_path / "a.png")
    with pytest.raises(ValueError, match=f"Received: {next(iter(options))}"):
        datasets.info(f"image_folder:{tmp_path}", **options)
