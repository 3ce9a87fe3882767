"""The weights that a run starts from."""

from __future__ import annotations

import dataclasses
import datetime
import os
from pathlib import Path

from vaezoo import checks, files
from vaezoo.zoo import entries, provenance, registry, runs
from vaezoo.zoo import weights as weights_lib


@dataclasses.dataclass(frozen=True)
class Start:
    """The weights that a run starts from, and how those were made."""

    name: str
    path: Path
    history: list[entries.TrainingRecord]
    entry: entries.ZooEntry | None = None  # what they are of, where it is known
    is_other: bool = False  # of another architecture
    part: str = "all"  # of them, or "decoder"
    decoder: Start | None = None  # where the decoder's weights come from instead

    @classmethod
    def find(cls, init, entry, source, part="all", *, name="init"):
        """What `init` (or another argument, by name) means; `None` from scratch."""
        checks.choice("init_part", part, ("all", "decoder"))
        if init == "none" and part != "all":
            raise ValueError(
                "`init_part` is of the weights that a run starts from. Received: "
                f'init="none", init_part={part!r}. Name them with `init` (--init).'
            )
        if init == "none":
            return None
        if init == "zoo" and entry.weights is None:
            raise ValueError(
                f'{name}="zoo" needs an entry with trained weights. Received: '
                f'{entry.name!r}, which has none. Train it from scratch: init="none".'
            )
        if init == "zoo":
            path = Path(registry.find_weights(source))
            return cls(entry.name, path, entry.history, entry, part=part)
        file = files.local_path(init, name=name)
        if not file.exists() and init not in registry.list_models():
            raise ValueError(
                f"`{name}` must be {'none, ' * (name == 'init')}zoo, or where other "
                "weights are: a run folder, a file, or a name of the zoo. Received: "
                f"{name}={os.fspath(init)!r}, which is not there."
            )
        path, history = Path(registry.find_weights(init)), []
        if path == file:
            return cls(path.name, path, history, part=part)
        other = registry.find_entry(init)
        is_other = _architecture(other) != _architecture(entry)
        history = [] if is_other else other.history
        return cls(other.name, path, history, other, is_other, part)

    def fits(self, entry, image_shape):
        """Whether all weights are those of an entry's model, for a shape of images.

        A file of which no more is known is taken for the entry's own.
        """
        if self.part != "all":
            return False
        usual, own = (
            e.model.arguments.get("image_shape") for e in (entry, self.entry or entry)
        )
        return not self.is_other and (image_shape or usual) == own

    @classmethod
    def of_run(cls, out):
        """The weights of a run that has ended, or `None`."""
        path = out / runs.WEIGHTS_FILE
        return cls(registry.find_entry(out).name, path, []) if path.exists() else None


def _architecture(entry):
    """The class and the arguments of an entry's model, but for the images' shape."""
    arguments = dict(entry.model.arguments)
    arguments.pop("image_shape", None)
    return entry.model.class_name, arguments


def with_decoder(start, decoder):
    """A start with the decoder of another, both as `Start.find` gave them."""
    if start is None or decoder is None or start.part != "all":
        raise checks.refusal(
            "`init_decoder` gives the weights of `init` another's decoder.",
            f"init={start and start.name!r}, init_decoder={decoder and decoder.name!r}"
            f"{', init_part=' + repr(start.part) if start else ''}",
            "Name both, and leave `init_part` out.",
        )
    # What both have gone through before they parted is told once.
    own = [record for record in decoder.history if record not in start.history]
    return dataclasses.replace(start, decoder=decoder, history=start.history + own)


def new_record(start):
    """A `TrainingRecord` of a run that begins now, from weights or from scratch."""

    def found(start):
        if start is None:
            return None
        return entries.Start(name=start.name, sha256=weights_lib.sha256(start.path))

    return entries.TrainingRecord(
        command=provenance.command(),
        commit=provenance.commit(),
        date=datetime.date.today(),
        hardware=provenance.hardware(),
        init=found(start),
        init_decoder=found(start and start.decoder),
        phases=[],
    )
