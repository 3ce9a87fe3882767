"""Labelled grids of images and bars as PNG or JPEG files, tables as Markdown."""

import math
from pathlib import Path

import numpy as np

from vaezoo.files import atomic_path, local_path

_MIN_SIDE = 64  # smaller images are enlarged by whole pixels to about this size
_MARGIN = 6  # around text, in pixels
_FONT_SCALE = 2
_GREYS = (96, 160, 208)  # of the parts of a bar
_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}
# Glyphs of 5x7 pixels for ASCII 32 to 126, a byte a column, the lowest bit on top.
_FONT = bytes.fromhex(
    "0000000000 00005f0000 0007000700 147f147f14 242a7f2a12 2313086462 3649562050"
    "0000070000 001c224100 0041221c00 2a1c7f1c2a 08083e0808 0050300000 0808080808"
    "0060600000 2010080402 3e5149453e 00427f4000 4261514946 2141454b31 1814127f10"
    "2745454539 3c4a494930 0171090503 3649494936 064949291e 0036360000 0056360000"
    "0814224100 1414141414 0041221408 0201510906 324979413e 7e1111117e 7f49494936"
    "3e41414122 7f4141221c 7f49494941 7f09090901 3e4149497a 7f0808087f 00417f4100"
    "2040413f01 7f08142241 7f40404040 7f020c027f 7f0408107f 3e4141413e 7f09090906"
    "3e4151215e 7f09192946 4649494931 01017f0101 3f4040403f 1f2040201f 3f4038403f"
    "6314081463 0708700807 6151494543 007f414100 0204081020 0041417f00 0402010204"
    "4040404040 0001020400 2054545478 7f48444438 3844444420 384444487f 3854545418"
    "087e090102 18a4a4a47c 7f08040478 00447d4000 2040443d00 7f10284400 00417f4000"
    "7c04180478 7c08040478 3844444438 fc24242418 18242424fc 7c08040408 4854545420"
    "043f444020 3c4040207c 1c2040201c 3c4030403c 4428102844 1ca0a0a07c 4464544c44"
    "0008364100 00007f0000 0041360800 0804081008"
)


def image_grid(images, *, columns=None, levels=256, labels=None):
    """Arrange images in one picture, with a gap of one pixel.

    Args:
        images: uint8 `[n, height, width, channels]`, n of at least 1, 1 or 3 channels.
        columns: int. Images a row of the grid; `None` for a square one.
        levels: int. 2 shows {0, 1} as black and white.
        labels: list of str, written to the left of the rows; `None` for none.

    Returns:
        uint8 `[grid height, grid width, channels]`.

    Raises:
        ValueError: if the shape or the number of labels is wrong.
    """
    images = np.asarray(images)
    if images.ndim != 4 or len(images) == 0 or images.shape[-1] not in (1, 3):
        raise ValueError(
            "`images` must be uint8 [n, height, width, 1 or 3], n at least 1. "
            f"Received: shape={images.shape}."
        )
    images = to_bytes(images, levels)
    scale = max(1, round(_MIN_SIDE / max(images.shape[1:3])))
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    num, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(num))
    rows = math.ceil(num / columns)
    grid = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, channels), 128)
    for index, image in enumerate(images):
        top = index // columns * (height + 1) + 1
        left = index % columns * (width + 1) + 1
        grid[top : top + height, left : left + width] = image
    if labels is not None:
        if len(labels) != rows:
            raise ValueError(
                f"`labels` must be one a row of the grid, {rows}. "
                f"Received: {len(labels)}."
            )
        texts = [_text(label) for label in labels]
        margin = max(text.shape[1] for text in texts) + 2 * _MARGIN
        side = np.full((len(grid), margin, channels), 255)
        for index, text in enumerate(texts):
            middle = index * (height + 1) + (height + 2) // 2
            _write(side, text, middle - len(text) // 2, _MARGIN)
        grid = np.concatenate([side, grid], axis=1)
    return grid.astype(np.uint8)


def to_bytes(images, levels):
    """Images of `levels` levels as uint8 of 0 to 255, a copy."""
    return (images * (255 // (levels - 1))).astype(np.uint8)


def picture_format(path):
    """What a picture is written as by its file's name: "png" or "jpeg".

    Raises:
        ValueError: if the name ends otherwise.
    """
    suffix = local_path(path).suffix.lower()
    if suffix not in _FORMATS:
        raise ValueError(
            f"A picture's file must end in {', '.join(_FORMATS)}. Received: "
            f"{str(path)!r}. Give another name."
        )
    return _FORMATS[suffix]


def save_picture(path, image):
    """Write a picture as PNG or JPEG, by the file's name, whole or not at all.

    Args:
        path: the file.
        image: uint8 `[height, width, 1 or 3]`.

    Raises:
        ValueError: as of `picture_format`.
        OSError: if the file cannot be written.
    """
    import tensorflow as tf

    if picture_format(path) == "png":
        data = tf.io.encode_png(image)
    else:
        data = tf.io.encode_jpeg(image, quality=95)
    with atomic_path(path) as temporary:
        Path(temporary).write_bytes(data.numpy())


def bars(values, *, labels, axis, length=320):
    """A bar chart: a line a value, its name to the left and the value to the right.

    Args:
        values: floats `[n]`, n of at least 1, not negative; the axis starts at 0. Or
            `[n, parts]`, up to 3 parts of a bar from left to right, dark to light,
            whose sum is written.
        labels: list of `n` strs.
        axis: str. What the bars show, with its unit; written above them.
        length: int. Pixels of the longest bar.

    Returns:
        uint8 `[height, width, 1]`, black on white.

    Raises:
        ValueError: if a value is negative or there is not a label for each.
    """
    values = np.asarray(values, np.float64)
    if len(values) != len(labels) or len(values) == 0 or not np.all(values >= 0):
        raise ValueError(
            "`values` must be at least 0, with a label each. Received: "
            f"values={values.tolist()}, {len(labels)} labels."
        )
    title, names = _text(axis), [_text(label) for label in labels]
    ends = np.cumsum(values.reshape(len(values), -1), axis=1)
    totals = ends[:, -1]
    numbers = [_text(f"{value:#.3g}".rstrip(".")) for value in totals]
    line = len(title) + 2 * _MARGIN
    zero = max(name.shape[1] for name in names) + 2 * _MARGIN
    end = zero + length + max(n.shape[1] for n in numbers) + 2 * _MARGIN
    width = max(end, zero + title.shape[1] + _MARGIN)
    picture = np.full([(len(values) + 1) * line, width, 1], 255, np.uint8)
    _write(picture, title, _MARGIN, zero)
    lengths = np.round(length * ends / max(totals.max(), 1e-12)).astype(int)
    for index, sizes in enumerate(lengths):
        top = (index + 1) * line
        _write(picture, names[index], top + _MARGIN, zero - _MARGIN, right=True)
        bar = picture[top + 3 : top + line - 3, zero:]
        greys = _GREYS[: len(sizes)]
        for size, grey in zip(sizes[::-1], greys[::-1], strict=True):
            bar[:, :size] = grey
        _write(picture, numbers[index], top + _MARGIN, zero + sizes[-1] + _MARGIN)
    picture[line:, zero - 1] = 0  # the axis at 0
    return picture


def markdown_table(header, rows):
    """A Markdown table, a line a row, ending with a new line."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _text(string):
    """A line of text as a mask, bool `[height, width]`; "?" where not ASCII."""
    codes = [ord(c) if 32 <= ord(c) < 127 else ord("?") for c in string]
    columns = [[*_FONT[5 * (c - 32) : 5 * (c - 31)], 0] for c in codes]
    columns = np.array(columns, np.uint8).reshape(1, -1)
    mask = np.unpackbits(columns, axis=0, bitorder="little").astype(bool)
    return mask.repeat(_FONT_SCALE, axis=0).repeat(_FONT_SCALE, axis=1)


def _write(picture, text, top, left, *, right=False):
    """Draw a mask in black, in place; `left` is its right end where `right`."""
    height, width = text.shape
    left -= width * right
    picture[top : top + height, left : left + width][text] = 0
