"""A run's log: a CSV file with a row an epoch."""

import csv

import keras

from vaezoo.files import atomic_path


class EpochLog(keras.callbacks.Callback):
    """Writes what Keras logs at the end of each epoch, replacing the file at once.

    Epochs may have different columns, as phases with and without validation do.

    Args:
        path: the CSV file; epochs that it holds already are kept.
        first_epoch: int, the first that will be trained; those from it on are not kept.
    """

    def __init__(self, path, *, first_epoch):
        super().__init__()
        self._path = path
        self._rows = []
        if path.exists():
            with open(path, newline="") as file:
                rows = [row for row in csv.DictReader(file) if None not in row.values()]
            self._rows = [row for row in rows if int(row["epoch"]) < first_epoch]

    def on_epoch_end(self, epoch, logs=None):
        self._rows.append({"epoch": epoch, **(logs or {})})
        columns = list(dict.fromkeys(key for row in self._rows for key in row))
        with atomic_path(self._path) as temporary:
            with open(temporary, "w", newline="") as file:
                writer = csv.DictWriter(file, columns, lineterminator="\n")
                writer.writeheader()
                writer.writerows(self._rows)
