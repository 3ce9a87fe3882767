"""Zoo entries: one YAML file each, checked against a typed schema.

An entry says what a model is, how it was trained, what its paper reports and what we
measured. A *run folder*, which `vaezoo train` writes, holds an entry of its own in
`entry.yaml`.
"""

import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from vaezoo.files import atomic_path, local_path
from vaezoo.zoo.recipes import Recipe, Schema, Training, explain

ENTRY_FILE = "entry.yaml"
STATUSES = {
    "reproduced": "within its error of the paper's bound, or better",
    "partial": "trained here for less than it could be; it draws and scores well",
    "begun": "trained for a short time: to start from, not to judge the model by",
    "untrained": "no weights here: to build and train",
}


class ModelInfo(Schema):
    """A model class and the arguments of its constructor."""

    class_name: str = Field(alias="class")
    arguments: dict[str, Any]


class Evaluation(Schema):
    """The protocol that the entry's numbers follow."""

    bound: Literal["elbo", "log_likelihood"]
    num_importance_samples: PositiveInt
    split: str


class Result(Schema):
    """A number: log-likelihoods and bounds in nats an image, higher is better.

    `num_importance_samples` is K of the importance-weighted bound L_K, and null for
    a metric that has none: the ELBO, or an exact log-likelihood.
    """

    metric: str
    value: float
    num_importance_samples: PositiveInt | None = None


class Paper(Schema):
    """Where a model was published, and what was reported there."""

    title: str
    arxiv: str | None
    table: str
    system: str
    results: list[Result]


class Measurement(Result):
    """A number of ours, and what it takes to measure it again."""

    standard_error: NonNegativeFloat | None
    split: str
    images: PositiveInt
    seed: int
    command: str
    commit: str | None
    date: datetime.date
    hardware: str


_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ValidationPoint(Schema):
    """The bound of the validation split after some steps of a phase."""

    steps: NonNegativeInt
    elbo: float


class PhaseRecord(Schema):
    """What was done of a phase: `epochs` of the images, `seconds` of wall time."""

    name: str
    mode: str
    steps: NonNegativeInt
    epochs: NonNegativeFloat
    images: NonNegativeInt
    crop_size: PositiveInt | None
    seconds: NonNegativeFloat
    validation: list[ValidationPoint]


class Start(Schema):
    """The weights that a run started from: of an entry, a run or a file."""

    name: str
    sha256: _Sha256


class TrainingRecord(Schema):
    """What a run did, written by itself; `init` is null where it began from scratch.

    `init_decoder` is what the decoder's weights came from, and left out where that is
    `init`.
    """

    command: str
    commit: str | None
    date: datetime.date
    hardware: str
    init: Start | None
    init_decoder: Start | None = None
    phases: list[PhaseRecord]

    @pydantic.model_serializer(mode="wrap")
    def _leave_out_what_is_rare(self, to_dict):
        fields = to_dict(self)
        if self.init_decoder is None:
            fields.pop("init_decoder", None)
        return fields


class WeightsInfo(Schema):
    """A file of weights: in the package or beside the entry, or behind URLs."""

    file: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None = None
    urls: list[Annotated[str, Field(pattern=r"^https?://")]] = []
    bytes: PositiveInt
    sha256: _Sha256

    @pydantic.model_validator(mode="after")
    def _has_a_place(self):
        if self.file is None and not self.urls:
            raise ValueError("`file` or `urls` must say where the weights are")
        return self


class ZooEntry(Schema):
    """One model of the zoo. Equal to its YAML file, key by key.

    `training` is one recipe or a list of them; `history` says how the weights were
    made, and is empty where nobody recorded it.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    model: ModelInfo
    dataset: str
    training: Training
    fine_tune: Recipe
    evaluation: Evaluation
    paper: Paper | None
    weights: WeightsInfo | None
    measured: list[Measurement]
    status: Literal["reproduced", "partial", "begun", "untrained"]
    notes: list[str]
    history: list[TrainingRecord] = []

    _path: Path | None = pydantic.PrivateAttr(default=None)

    @pydantic.model_validator(mode="after")
    def _is_consistent(self):
        if (self.weights is None) != (self.status == "untrained"):
            raise ValueError("`status` must be 'untrained' where `weights` is null")
        if self.weights is None and self.measured:
            raise ValueError("`measured` must be empty where `weights` is null")
        if self.fine_tune.kl_warmup_steps:
            raise ValueError("`fine_tune.kl_warmup_steps` must be 0")
        names = [recipe.name for recipe in self.phases]
        if len(set(names)) < len(names):
            raise ValueError(f"`training` must have phases of other names, not {names}")
        if len({recipe.precision for recipe in self.phases}) > 1:
            raise ValueError("`training` must have one `precision` for all its phases")
        return self

    @property
    def phases(self):
        """The recipes of `training`, in order: a tuple of one or more `Recipe`."""
        if isinstance(self.training, Recipe):
            return (self.training,)
        return tuple(self.training)

    @property
    def path(self):
        """The YAML file that the entry was read from, or `None`."""
        return self._path


def entry_from_file(path):
    """Read and check a zoo entry.

    Args:
        path: a YAML file.

    Returns:
        A `ZooEntry`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is malformed; file and line, or file and key, are named.
    """
    path = local_path(path)
    return _parse(path.read_text(encoding="utf-8"), path)


def write_entry(entry, path):
    """Write a zoo entry, replacing `path` at once.

    Args:
        entry: a `ZooEntry`; it is checked again, so `model_copy` may have changed it.
        path: the YAML file, as the `entry.yaml` of a run folder.

    Raises:
        ValueError: if the entry is malformed; nothing is written.
        OSError: if the file cannot be written.
    """
    content = entry.model_dump()
    if not entry.history:
        del content["history"]
    text = _to_yaml(content)
    _parse(text, Path(path))
    with atomic_path(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")


def append_measured(path, record):
    """Add a measurement to an entry's file, whose other text stays as it is.

    A measurement of the same metric, K, split, images and seed is replaced.

    Args:
        path: the entry's YAML file.
        record: a `Measurement`, or a dict of its fields.

    Raises:
        ValueError: if the record or the file is malformed; the file is unchanged.
        OSError: if the file cannot be read or written.
    """
    if not isinstance(record, Measurement):
        try:
            record = Measurement.model_validate(record)
        except pydantic.ValidationError as error:
            raise ValueError(explain(error, "A measurement")) from None

    def key(result):
        bound = result.metric, result.num_importance_samples
        return *bound, result.split, result.images, result.seed

    kept = [m for m in entry_from_file(path).measured if key(m) != key(record)]
    rewrite(path, {"measured": [_plain(m) for m in [*kept, record]]})


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, refusing a key given twice."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if not isinstance(key, str):
                continue
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _parse(text, path):
    try:
        content = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise ValueError(
            f"A zoo entry must be YAML. Received: {str(path)!r}{line}: {problem}."
        ) from None
    if not isinstance(content, dict):
        raise ValueError(
            "A zoo entry must be a YAML mapping of keys to values. Received: "
            f"{str(path)!r}, a {type(content).__name__}."
        )
    try:
        entry = ZooEntry.model_validate(content)
    except pydantic.ValidationError as error:
        raise ValueError(explain(error, f"The zoo entry {str(path)!r}")) from None
    if path.name not in (ENTRY_FILE, f"{entry.name}.yaml"):
        raise ValueError(
            f"The zoo entry {str(path)!r} must be named after its file. Received: "
            f"name={entry.name!r}."
        )
    entry._path = path
    return entry


def _plain(record):
    """A record as YAML stores it, without the fields that are null by default."""
    fields = record.model_dump()
    if fields["num_importance_samples"] is None:
        del fields["num_importance_samples"]
    return fields


def rewrite(path, changes):
    """Replace the values of top-level keys of an entry's file, and nothing else in it.

    Args:
        path: the YAML file.
        changes: dict of key to value, as YAML stores it; a key that the file does not
            have comes at its end.

    Raises:
        ValueError: if the file is malformed, before or after; it is unchanged.
        OSError: if the file cannot be read or written.
    """
    path = local_path(path)
    text = path.read_text(encoding="utf-8")
    _parse(text, path)
    spans = {
        key.value: (key.start_mark.index, value.end_mark.index)
        for key, value in yaml.compose(text, _Loader).value
    }
    new = {key: value for key, value in changes.items() if key not in spans}
    for key in sorted(changes.keys() - new.keys(), key=spans.__getitem__, reverse=True):
        start, end = spans[key]
        lines = text[start:end].splitlines(keepends=True)
        # A block ends where the next key starts: leave it what lies between.
        while not lines[-1].strip() or lines[-1].lstrip().startswith("#"):
            lines.pop()
        end = start + len("".join(lines).rstrip())
        text = text[:start] + _to_yaml({key: changes[key]}).rstrip() + text[end:]
    if new:
        text = text.rstrip() + "\n" + _to_yaml(new)
    _parse(text, path)
    with atomic_path(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")


def _to_yaml(content):
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)
