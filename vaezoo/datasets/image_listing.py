"""The image files of a folder, and which split each is of."""

import os
import pathlib
import re

_SPLITS = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",  # or validation, but never to be trained on
    "evaluation": "test",
    "holdout": "test",
}
# `Test`, `val2017` and `train_images` too; but `bullet_train` holds trains.
_KINDS = "images?|imgs?|pictures?|photos?|files?|data|set|split"
_SPLIT_NAME = re.compile(
    rf"(?:(?:{_KINDS})[\W_]*)?({'|'.join(_SPLITS)})[\W\d_]*(?:{_KINDS})?[\W\d_]*",
    re.IGNORECASE,
)
_MADE_BY_SYSTEMS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")


def walk(folder, ancestors=()):
    """The files below a folder, in the order of their names.

    Links are followed, but not round in a circle; what is hidden, or made by systems
    for themselves, is left out.

    Args:
        folder: path.
        ancestors: tuple, what the folders are known by that this one is in.

    Returns:
        An iterator of paths.
    """
    status = os.stat(folder)
    here = status.st_dev, status.st_ino
    if here in ancestors:  # a link to a folder that it is in
        return
    with os.scandir(folder) as items:
        items = sorted(items, key=lambda item: item.name)
    for item in items:
        if item.name.startswith(".") or item.name in _MADE_BY_SYSTEMS:
            continue
        if item.is_dir():
            yield from walk(item.path, (*ancestors, here))
        elif item.is_file() or item.is_symlink():  # a dead link cannot be read
            yield pathlib.Path(item.path)


def _split_of(name):
    found = _SPLIT_NAME.fullmatch(name)
    return found and _SPLITS[found[1].lower()]


def by_split(root, paths):
    """Sort files into splits, by the names of the folders directly in the root.

    Args:
        root: path of the image folder.
        paths: list of paths in it.

    Returns:
        dict of split to its paths, sorted; and a list of those outside of the splits'
        folders. Without such folders, all files are `train`.

    Raises:
        ValueError: two folders are one split, or there are splits further down.
    """
    folders = {}
    for item in sorted(root.iterdir()):
        split = _split_of(item.name) if item.is_dir() else None
        if split in folders:
            raise ValueError(
                "An image folder must have one folder a split. Received: "
                f"{folders[split].name!r} and {item.name!r} in PATH={str(root)!r}, "
                f"both {split}. Put the files of one into the other, or elsewhere."
            )
        if split is not None:
            folders[split] = item
    if not folders:
        _refuse_deeper_splits(root, paths)
        return {"train": sorted(paths)}, []
    order = dict.fromkeys(_SPLITS.values())
    splits = {split: [] for split in order if split in folders}
    outside = []
    for path in sorted(paths):
        top = root / path.relative_to(root).parts[0]
        split = next((s for s, folder in folders.items() if folder == top), None)
        (outside if split is None else splits[split]).append(path)
    return splits, outside


def _refuse_deeper_splits(root, paths):
    """Images to be tested on would be trained on."""
    for path in paths:
        for parent in path.relative_to(root).parents:
            if _split_of(parent.name) not in (None, "train"):
                raise ValueError(
                    "The folders of an image folder's splits must be directly in it. "
                    f"Received: {str(parent)!r} in PATH={str(root)!r}. Give the folder "
                    f"that it is in: image_folder:{root / parent.parent}."
                )
