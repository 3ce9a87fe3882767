"""Reading from TensorFlow Datasets, with an error at once where that cannot work."""

import concurrent.futures
import pathlib
import urllib.error
import urllib.parse
import urllib.request

from vaezoo.datasets.images import ImageArray, Images, MappedImages

_SECONDS_TO_ANSWER = 5.0


class DatasetNotFoundError(FileNotFoundError):
    """The files of a dataset are not on this machine and cannot be fetched."""


def builder(tfds_name: str):
    """Returns the TFDS builder of a name, those in `vaezoo.datasets.builders` too."""
    import tensorflow_datasets as tfds
    from absl import logging

    from vaezoo.datasets import builders  # noqa: F401, registers ours

    # TFDS warns of each dataset that it has not prepared yet.
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        return tfds.builder(tfds_name)
    finally:
        logging.set_verbosity(before)


def read(
    name: str,
    tfds_name: str,
    tfds_split: str,
    num_images: int,
    *,
    image_shape: tuple[int, int, int],
    in_memory: bool = True,
) -> Images:
    """Reads one split from TFDS, which downloads and prepares the dataset if need be.

    Args:
        name: the dataset's name here, for messages.
        tfds_name: its name in TFDS.
        tfds_split: a TFDS split, such as `"train[:55000]"`.
        num_images: how many the split has by the dataset's protocol.
        image_shape: `(height, width, channels)` of each of them.
        in_memory: without, images are copied once into a file beside TFDS's, of the
            size of the pixels, and read from there as they are asked for.

    Raises:
        DatasetNotFoundError: the dataset is not prepared and its files neither are on
            this machine nor can be fetched, or are not the published ones.
        ValueError: the split has another number of images.
    """
    import tensorflow_datasets as tfds

    source = builder(tfds_name)
    if not source.is_prepared():
        _prepare(source, name)
    if in_memory:
        data = source.as_dataset(split=tfds_split, batch_size=-1, shuffle_files=False)
        images = ImageArray(tfds.as_numpy(data)["image"])
    else:
        images = MappedImages(_copied_file(source, tfds_split, image_shape))
    if len(images) != num_images:
        raise ValueError(
            f"{tfds_split!r} of the dataset {name!r} (TFDS {tfds_name!r}) must have "
            f"{num_images} images. Received: {len(images)} in {source.data_dir!r}. "
            f"Remove that folder, and put the published files in place of those that "
            f"it was made from."
        )
    return images


def _copied_file(source, split: str, image_shape) -> pathlib.Path:
    """The `.npy` file of a split, written, whole or not at all, if it is not there."""
    import numpy as np
    import tensorflow_datasets as tfds

    from vaezoo.files import atomic_path, local_path

    folder = local_path(source.data_dir, name="TFDS_DATA_DIR")
    path = folder / f"vaezoo-{split}.npy"
    if not path.exists():
        # A feature of TFDS's need not know the shape of its images.
        shape = (source.info.splits[split].num_examples, *image_shape)
        data = source.as_dataset(split=split, batch_size=1000, shuffle_files=False)
        with atomic_path(path) as temporary:
            images = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
            start = 0
            for batch in tfds.as_numpy(data):
                images[start : start + len(batch["image"])] = batch["image"]
                start += len(batch["image"])
            images.flush()
    return path


def filenames(builder) -> dict[str, str]:
    """Returns the published names of the files of a TFDS builder, by URL."""
    # Our builders share one list of checksums, and not every file is in it.
    if hasattr(builder, "FILES"):
        return builder.FILES
    known = {url: info.filename for url, info in (builder.url_infos or {}).items()}
    config = builder.builder_config
    if config is None:
        return known
    # All configurations of a builder are in one list too: 32x32 and 64x64.
    return {url: name for url, name in known.items() if config.name in name}


def manual_dir(builder) -> pathlib.Path:
    """Returns the folder where a user may put a TFDS builder's published files."""
    return pathlib.Path(builder.data_dir_root) / "downloads" / "manual"


def _prepare(builder, name: str) -> None:
    data_dir = str(builder.data_dir_root)
    files = filenames(builder)
    manual = manual_dir(builder)
    if not all((manual / filename).exists() for filename in files.values()):
        # TFDS itself would retry a name lookup for minutes.
        for url in _one_url_a_host(files):
            if not _answers(url):
                raise DatasetNotFoundError(
                    f"The dataset {name!r} (TFDS {builder.name!r}) is not on this "
                    f"machine, and {urllib.parse.urlsplit(url).netloc}, which has its "
                    f"files, did not answer. Received: data folder {data_dir!r}. "
                    f"Connect to the network, or put the published files "
                    f"({', '.join(files.values())}) into {str(manual)!r}, or set "
                    f"TFDS_DATA_DIR to a folder where TFDS has prepared it. The "
                    f"dataset 'digits' needs no files."
                )
    try:
        builder.download_and_prepare()
    except ImportError:  # of a package, which the message names
        raise
    except Exception as error:
        raise DatasetNotFoundError(
            f"TFDS could not prepare the dataset {name!r} (TFDS {builder.name!r}) in "
            f"{data_dir!r}: {error}\nIt needs the published files "
            f"({', '.join(files.values())}), whole and unchanged, from the network or "
            f"in {str(manual)!r}."
        ) from error


def _one_url_a_host(urls) -> list[str]:
    return list({urllib.parse.urlsplit(url).netloc: url for url in urls}.values())


def _answers(url: str) -> bool:
    """Whether the host of `url` answers within a few seconds, name lookup included."""

    def ask():
        request = urllib.request.Request(url, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=_SECONDS_TO_ANSWER).close()
        except urllib.error.HTTPError:
            pass  # A refusal is an answer too: the download will say more.

    executor = concurrent.futures.ThreadPoolExecutor(max_workers=1)
    try:
        executor.submit(ask).result(timeout=_SECONDS_TO_ANSWER)
    except (OSError, concurrent.futures.TimeoutError):
        return False
    finally:
        executor.shutdown(wait=False)
    return True
