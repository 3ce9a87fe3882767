"""One image file as pixels."""

import dataclasses
import os
import pathlib

import numpy as np

SUFFIXES = tuple(
    ".bmp .gif .jfif .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_PNG = b"\x89PNG\r\n\x1a\n"


class UnreadableImageError(ValueError):
    """A file is not a whole image of a kind that is read; the message says why."""


@dataclasses.dataclass(frozen=True)
class FileInfo:
    """What a file holds.

    Attributes:
        size: `(height, width)` in pixels, upright.
        is_grey: whether it has no colours.
        largest: int, the largest level of a 16-bit file, else None.
    """

    size: tuple[int, int]
    is_grey: bool
    largest: int | None


def inspect(path: str | os.PathLike[str]) -> FileInfo:
    """Decodes a whole file, and says what it holds.

    Raises:
        UnreadableImageError: it cannot be decoded to its end.
    """
    pixels = _pixels(path)
    height, width, depth = pixels.shape
    colours = pixels[..., : 1 if depth < 3 else 3]
    return FileInfo(
        size=(height, width),
        is_grey=depth < 3,
        largest=int(colours.max()) if pixels.dtype == np.uint16 else None,
    )


def read(
    path: str | os.PathLike[str], *, channels: int, background: int, bits: int
) -> np.ndarray:
    """Reads a file, upright and opaque.

    Args:
        path: the file.
        channels: 1 or 3.
        background: level, 0 to 255, of what shows through transparent pixels.
        bits: of the levels of a 16-bit file, which may use fewer than it has room for.

    Returns:
        uint8 `[height, width, channels]`.

    Raises:
        UnreadableImageError: it cannot be decoded to its end.
    """
    pixels = _pixels(path)
    is_wide = pixels.dtype == np.uint16
    has_alpha = pixels.shape[-1] in (2, 4)
    if not (is_wide or has_alpha) and pixels.shape[-1] == channels:
        return pixels
    levels = pixels.astype(np.float32)
    if has_alpha:
        alpha = levels[..., -1:] / np.float32(65535 if is_wide else 255)
        levels = levels[..., :-1]
    if is_wide:
        levels = np.minimum(levels * np.float32(255 / (2**bits - 1)), 255)
    if has_alpha:
        levels = levels * alpha + background * (1 - alpha)
    if levels.shape[-1] == 3 and channels == 1:
        luma = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
        levels = levels @ luma[:, np.newaxis]
    levels = np.rint(levels).astype(np.uint8)
    return np.broadcast_to(levels, (*levels.shape[:2], channels)).copy()


def crop_and_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Crops an image at its centre to an aspect, and resizes it by averaging areas.

    Args:
        image: uint8 `[rows, columns, channels]`.
        height: of the result.
        width: of the result.

    Returns:
        uint8 `[height, width, channels]`.
    """
    import tensorflow as tf

    rows, columns = image.shape[:2]
    scale = min(rows / height, columns / width)
    crop = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (rows - crop[0]) // 2, (columns - crop[1]) // 2
    image = image[top : top + crop[0], left : left + crop[1]]
    with tf.device("CPU"):
        resized = tf.image.resize(image, (height, width), method="area")
    return np.clip(np.rint(resized.numpy()), 0, 255).astype(np.uint8)


def _pixels(path):
    """Levels and alpha as stored: uint8 or uint16 `[height, width, 1 to 4]`."""
    try:
        with open(path, "rb") as file:
            head = file.read(25)
        # Pillow would drop the lower half of 16-bit colours.
        if head.startswith(_PNG) and head[24:] == b"\x10":
            return _wide_png(path)
        return _by_pillow(path)
    except UnreadableImageError:
        raise
    except Exception as error:  # decoders raise anything on a broken file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "cannot identify image file" in reason:  # and the path again
            reason = "no image that can be read"
        raise UnreadableImageError(reason) from error


def _wide_png(path):
    import tensorflow as tf

    with tf.device("CPU"):
        data = pathlib.Path(path).read_bytes()
        return tf.io.decode_png(data, dtype=tf.uint16).numpy()


def _by_pillow(path):
    from PIL import Image, ImageOps

    with Image.open(path, formats=_FORMATS) as image:
        wide = image.mode.startswith("I")
        if image.mode == "F":
            raise UnreadableImageError("levels in floating point, of no known range")
        if image.format == "TIFF" and not wide:
            if max(image.tag_v2.get(258, (8,))) > 8:  # BitsPerSample
                raise UnreadableImageError("more than 8 bits a colour in a TIFF file")
        image = ImageOps.exif_transpose(image)
        if wide:
            levels = np.asarray(image)
            if levels.min() < 0 or levels.max() > 65535:
                raise UnreadableImageError("levels of more than 16 bits")
            return levels.astype(np.uint16)[..., np.newaxis]
        has_alpha = "transparency" in image.info or image.mode[-1] in "Aa"
        if image.mode in ("1", "L", "LA", "La"):
            mode = "LA" if has_alpha else "L"
        else:
            mode = "RGBA" if has_alpha else "RGB"
        levels = np.asarray(image.convert(mode))
        return levels.reshape(*levels.shape[:2], -1)
