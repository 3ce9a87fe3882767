"""Draws the picture that the README opens with.

python docs/images/opening.py
"""

from pathlib import Path

import numpy as np

import vaezoo
from vaezoo import plots

NAME = "vlae_mnist_static"
COLUMNS = 14


def main():
    """Write the picture beside this file."""
    model = vaezoo.load(NAME)
    split = vaezoo.load_dataset("mnist_static", "test", batch_size=COLUMNS)
    images = next(iter(split)).numpy()
    mask = np.zeros([COLUMNS, 28, 28, 1], np.uint8)
    mask[:, 14:] = 1
    seen = np.where(mask, 128, 255 * images)
    rows = {
        "samples": model.sample(COLUMNS, seed=0),
        "": model.sample(COLUMNS, seed=1),
        "images": images,
        "rebuilt": model.reconstruct(images),
        "seen": None,
        "filled in": model.complete(images, mask),
    }
    shown = [seen if row is None else 255 * np.array(row) for row in rows.values()]
    grid = plots.image_grid(np.concatenate(shown), columns=COLUMNS, labels=list(rows))
    plots.save_picture(Path(__file__).with_suffix(".png"), grid)


if __name__ == "__main__":
    main()
