"""Reading from TensorFlow Datasets, with an error at once where that cannot work."""

import concurrent.futures
import pathlib
import urllib.error
import urllib.parse
import urllib.request

from vaezoo.datasets.images import ImageArray

_SECONDS_TO_ANSWER = 5.0


class DatasetNotFoundError(FileNotFoundError):
    """The files of a dataset are not on this machine and cannot be fetched."""


def read(name: str, tfds_name: str, tfds_split: str) -> ImageArray:
    """Reads one split from TFDS, which downloads and prepares the dataset if need be.

    Args:
        name: the dataset's name here, for messages.
        tfds_name: its name in TFDS.
        tfds_split: a TFDS split, such as `"train[:55000]"`.

    Raises:
        DatasetNotFoundError: the dataset is not prepared and its files neither are on
            this machine nor can be fetched.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder(tfds_name)
    if not builder.is_prepared():
        _prepare(builder, name)
    data = builder.as_dataset(split=tfds_split, batch_size=-1, shuffle_files=False)
    return ImageArray(tfds.as_numpy(data)["image"])


def _prepare(builder, name: str) -> None:
    data_dir = pathlib.Path(builder.data_dir_root)
    manual_dir = data_dir / "downloads" / "manual"
    if not all((manual_dir / f.filename).exists() for f in builder.url_infos.values()):
        # TFDS itself would retry a name lookup for minutes.
        for url in _one_url_a_host(builder.url_infos):
            if not _answers(url):
                raise DatasetNotFoundError(
                    f"The dataset {name!r} (TFDS {builder.name!r}) is not on this "
                    f"machine, and {urllib.parse.urlsplit(url).netloc}, which has its "
                    f"files, did not answer. Received: data folder {str(data_dir)!r}. "
                    f"Connect to the network, or put the published files into "
                    f"{str(manual_dir)!r}, or set TFDS_DATA_DIR to a folder where TFDS "
                    f"has prepared it. The dataset 'digits' needs no files."
                )
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise DatasetNotFoundError(
            f"TFDS could not prepare the dataset {name!r} (TFDS {builder.name!r}) in "
            f"{str(data_dir)!r}: {error}"
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
