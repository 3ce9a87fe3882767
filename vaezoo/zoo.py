"""The zoo: entries, one YAML file each, and the models that they describe.

An entry says what a model is, how it was trained, what its paper reports and what we
measured. `describe` reads one, `load` builds its model. A *run folder*, which
`vaezoo train` writes, holds an entry of its own in `entry.yaml` and can be given
wherever a name can.
"""

import datetime
import difflib
import fnmatch
import os
import re
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from vaezoo import weights as weights_lib

ENTRY_FILE = "entry.yaml"

_PACKAGED = Path(__file__).parent / "zoo_configs"
# An editable install leaves the files where the repository has them.
CONFIG_FOLDER = (
    _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[1] / "zoo_configs"
)


class _Schema(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, serialize_by_alias=True
    )


class ModelInfo(_Schema):
    """A model class and the arguments of its constructor."""

    class_name: str = Field(alias="class")
    arguments: dict[str, Any]


class GradientClip(_Schema):
    """How gradients are clipped, once they are summed over replicas."""

    by: Literal["value", "global_norm"]
    limit: PositiveFloat
    unit: Literal["per_image", "per_dim"]


class LearningRateDecay(_Schema):
    """How the learning rate goes down over the epochs of the recipe."""

    schedule: Literal["constant", "cosine", "linear"] = "constant"
    final_learning_rate: NonNegativeFloat = 0.0


class Recipe(_Schema):
    """How a model is trained; learning rates are per step, KL terms in nats."""

    optimizer: Literal["adam", "adamax"]
    learning_rate: PositiveFloat
    learning_rate_decay: LearningRateDecay = LearningRateDecay()
    beta_2: Annotated[float, Field(gt=0, lt=1)] = 0.999
    gradient_clip: GradientClip | None = None
    kl_warmup_steps: NonNegativeInt = 0
    kl_warmup_start: Annotated[float, Field(ge=0, le=1)] = 0.0
    free_bits_nats: NonNegativeFloat = 0.0
    soft_free_bits_nats: NonNegativeFloat = 0.0
    ema_momentum: Annotated[float, Field(gt=0, lt=1)] | None = None
    split: Literal["train", "train+validation"] = "train"
    batch_size: PositiveInt
    epochs: PositiveInt
    precision: Literal["float32", "mixed_bfloat16"] = "float32"
    seed: int = 0


class Evaluation(_Schema):
    """The protocol that the entry's numbers follow."""

    bound: Literal["elbo", "log_likelihood"]
    num_importance_samples: PositiveInt
    split: str


class Result(_Schema):
    """A number: log-likelihoods and bounds in nats an image, higher is better.

    `num_importance_samples` is K of the importance-weighted bound L_K, and null for
    a metric that has none: the ELBO, or an exact log-likelihood.
    """

    metric: str
    value: float
    num_importance_samples: PositiveInt | None = None


class Paper(_Schema):
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
    epochs: NonNegativeFloat | None


class WeightsInfo(_Schema):
    """A file of weights: in the package or beside the entry, or behind URLs."""

    file: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None = None
    urls: list[Annotated[str, Field(pattern=r"^https?://")]] = []
    bytes: PositiveInt
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    @pydantic.model_validator(mode="after")
    def _has_a_place(self):
        if self.file is None and not self.urls:
            raise ValueError("`file` or `urls` must say where the weights are")
        return self


class ZooEntry(_Schema):
    """One model of the zoo. Equal to its YAML file, key by key."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    model: ModelInfo
    dataset: str
    training: Recipe
    fine_tune: Recipe
    evaluation: Evaluation
    paper: Paper | None
    weights: WeightsInfo | None
    measured: list[Measurement]
    status: Literal["reproduced", "partial", "untrained"]
    notes: list[str]

    _path: Path | None = pydantic.PrivateAttr(default=None)

    @pydantic.model_validator(mode="after")
    def _is_consistent(self):
        if (self.weights is None) != (self.status == "untrained"):
            raise ValueError("`status` must be 'untrained' where `weights` is null")
        if self.weights is None and self.measured:
            raise ValueError("`measured` must be empty where `weights` is null")
        if self.fine_tune.kl_warmup_steps:
            raise ValueError("`fine_tune.kl_warmup_steps` must be 0")
        return self

    @property
    def path(self):
        """The YAML file that the entry was read from, or `None`."""
        return self._path


def list_models(pattern="*", *, dataset=None, model=None, trained=None):
    """Names of the zoo's entries, in natural order.

    Args:
        pattern: a name with shell wildcards, as "*_mnist_*".
        dataset: name of a dataset; only entries of it.
        model: name of a model class, as "PixelVAE"; only entries of it.
        trained: bool. Only entries that have, or have not, weights that load
            without a network.

    Returns:
        A list of str.
    """
    names = (path.stem for path in CONFIG_FOLDER.glob("*.yaml"))
    names = sorted(fnmatch.filter(names, pattern), key=_natural_key)
    if dataset is None and model is None and trained is None:
        return names

    def is_wanted(entry):
        return (
            dataset in (None, entry.dataset)
            and model in (None, entry.model.class_name)
            and trained in (None, _is_trained(entry))
        )

    return [name for name in names if is_wanted(describe(name))]


def describe(name_or_folder):
    """The entry of a model of the zoo or of a run folder.

    Args:
        name_or_folder: a name of `list_models`, or the folder that `vaezoo train`
            wrote.

    Returns:
        A `ZooEntry`.

    Raises:
        ValueError: if there is no such entry (near names are suggested), or if its
            file is malformed (file and key are named).
    """
    name = os.fspath(name_or_folder)
    known = list_models()
    if isinstance(name_or_folder, str) and name in known:
        return entry_from_file(CONFIG_FOLDER / f"{name}.yaml")
    file = Path(name) / ENTRY_FILE
    if file.is_file():
        return entry_from_file(file)
    if os.sep in name or Path(name).is_dir():
        raise ValueError(
            f"A run folder must hold {ENTRY_FILE}. Received: {name!r}, which does not. "
            "Give a folder that `vaezoo train` wrote, or a name of the zoo."
        )
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ValueError(
        f"A model's name must be one of the zoo's. Received: {name!r}. {hint}"
        "`vaezoo list`, or vaezoo.list_models(), gives all the names."
    )


def load(name_or_folder, *, weights="zoo", image_shape=None):
    """Build and compile a model of the zoo, ready to sample, score, train and export.

    With trained weights it is compiled to be fine-tuned; with `weights=None`, to be
    trained from scratch by the entry's recipe.

    Args:
        name_or_folder: a name of `list_models`, or the folder of a run.
        weights: "zoo" for the entry's own; `None` for none; or the path of a weight
            file, of vaezoo or a Keras `.weights.h5`.
        image_shape: `(height, width, channels)` other than the entry's. Weights that
            still fit are kept; a warning lists those that are initialised anew.

    Returns:
        A compiled `vaezoo.models.vae.VAE`; its `zoo_entry` is the entry.

    Raises:
        ValueError: if there is no such entry, if the entry has no trained weights, or
            if a weight file is corrupt or does not fit.
        OSError: if a weight file is not there and cannot be downloaded.
    """
    entry = describe(name_or_folder)
    path = weights
    if weights == "zoo":
        path = _trained_weights(entry, name_or_folder)

    from vaezoo import models, training

    arguments = dict(entry.model.arguments)
    if image_shape is not None:
        arguments["image_shape"] = image_shape
    try:
        model = models.get_class(entry.model.class_name)(**arguments)
    except Exception as error:
        error.add_note(f"The model is that of the zoo entry {str(entry.path)!r}.")
        raise

    if path is not None:
        usual_shape = tuple(entry.model.arguments.get("image_shape", ()))
        is_reshaped = image_shape is not None and model.image_shape != usual_shape
        left = weights_lib.read_weights(model, path, partial=is_reshaped)
        if left:
            warnings.warn(
                f"{len(left)} of {len(model.weights)} variables of {entry.name!r} do "
                f"not fit image_shape={model.image_shape} and are initialised anew: "
                f"{', '.join(left)}. Fine-tune the model before using it.",
                stacklevel=2,
            )
    recipe = entry.training if path is None else entry.fine_tune
    model.compile(**training.compile_arguments(recipe))
    model.zoo_entry = entry
    return model


def entry_of(model):
    """The entry that tells the truth of a model as it is now.

    Args:
        model: a model of `load`, or any other.

    Returns:
        A `ZooEntry`, or `None` for a model that is not of the zoo. Where the weights
        are not the entry's own (none were loaded, they were trained further, or
        the images have another size), it has no weights and no measurements.
    """
    entry = getattr(model, "zoo_entry", None)
    if entry is None or entry.weights is None:
        return entry
    image_shape = tuple(entry.model.arguments.get("image_shape", model.image_shape))
    if image_shape == model.image_shape and _has_weights_of(model, entry):
        return entry
    changes = {"weights": None, "measured": [], "status": "untrained"}
    return entry.model_copy(update=changes)


def _has_weights_of(model, entry):
    if not _is_trained(entry):
        return False
    try:
        path = weights_lib.fetch(entry.weights, folder=_folder(entry))
    except (OSError, ValueError):  # a run that was continued meanwhile, say
        return False
    return weights_lib.holds(path, model)


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
    path = Path(path)
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
    text = _to_yaml(entry.model_dump())
    _parse(text, Path(path))
    with weights_lib.atomic_path(path) as temporary:
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
            raise ValueError(_explain(error, "A measurement")) from None

    def key(result):
        bound = result.metric, result.num_importance_samples
        return *bound, result.split, result.images, result.seed

    kept = [m for m in entry_from_file(path).measured if key(m) != key(record)]
    _rewrite(path, {"measured": [_plain(m) for m in [*kept, record]]})


def install_weights(model, name, *, status="partial"):
    """Make a model's weights those of a zoo entry, stored as float16 in the package.

    The entry's measurements, which were of other weights, are dropped. Reload the
    entry to measure: the float16 weights are the ones to be scored.

    Args:
        model: a built model, as `load(name, weights=None)` builds it.
        name: a name of `list_models`.
        status: "partial" or "reproduced".

    Returns:
        The path of the new file of weights.

    Raises:
        ValueError: if the name, the model or the status is wrong for it.
        OSError: if the package's folder cannot be written.
    """
    entry = describe(name)
    folder = weights_lib.PRETRAINED_FOLDER
    folder.mkdir(exist_ok=True)
    temporary = folder / f".{entry.name}.h5"
    weights_lib.write_weights(model, temporary, dtype="float16")
    digest = weights_lib.sha256(temporary)
    path = folder / f"{entry.name}-{digest[:8]}.h5"
    info = {"file": path.name, "bytes": temporary.stat().st_size, "sha256": digest}
    os.replace(temporary, path)
    try:
        _rewrite(entry.path, {"weights": info, "measured": [], "status": status})
    except BaseException:
        if not entry.weights or entry.weights.file != path.name:
            path.unlink()
        raise
    for old in folder.glob(f"{entry.name}-????????.h5"):
        if old != path:
            old.unlink()
    return path


def _trained_weights(entry, name_or_folder):
    if entry.weights is None:
        raise ValueError(
            "An entry must have trained weights to be loaded with them. Received: "
            f"{entry.name!r}, which has none. Train it, `vaezoo train {entry.name} "
            "--out DIR`, and load DIR; or build it untrained, "
            f"vaezoo.load({os.fspath(name_or_folder)!r}, weights=None)."
        )
    return weights_lib.fetch(entry.weights, folder=_folder(entry))


def _is_trained(entry):
    return entry.weights is not None and weights_lib.is_local(
        entry.weights, folder=_folder(entry)
    )


def _folder(entry):
    return None if entry.path is None else entry.path.parent


def _natural_key(name):
    parts = re.split(r"(\d+)", name)
    return [int(part) if part.isdigit() else part for part in parts]


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
        raise ValueError(_explain(error, f"The zoo entry {str(path)!r}")) from None
    if path.name not in (ENTRY_FILE, f"{entry.name}.yaml"):
        raise ValueError(
            f"The zoo entry {str(path)!r} must be named after its file. Received: "
            f"name={entry.name!r}."
        )
    entry._path = path
    return entry


def _explain(error, subject):
    lines = []
    for item in error.errors():
        key = ".".join(map(str, item["loc"])) or "(entry)"
        value = item["input"]
        received = f" Received: {value!r}." if not isinstance(value, dict) else ""
        lines.append(f"  {key}: {item['msg']}.{received}")
    return f"{subject} must follow the schema of vaezoo.zoo:\n" + "\n".join(lines)


def _plain(record):
    """A record as YAML stores it, without the fields that are null by default."""
    fields = record.model_dump()
    if fields["num_importance_samples"] is None:
        del fields["num_importance_samples"]
    return fields


def _rewrite(path, changes):
    """Replace the values of top-level keys of a YAML file, and nothing else in it."""
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    _parse(text, path)
    spans = {
        key.value: (key.start_mark.index, value.end_mark.index)
        for key, value in yaml.compose(text, _Loader).value
    }
    for key in sorted(changes, key=spans.get, reverse=True):
        start, end = spans[key]
        lines = text[start:end].splitlines(keepends=True)
        # A block ends where the next key starts: leave it what lies between.
        while not lines[-1].strip() or lines[-1].lstrip().startswith("#"):
            lines.pop()
        end = start + len("".join(lines).rstrip())
        text = text[:start] + _to_yaml({key: changes[key]}).rstrip() + text[end:]
    _parse(text, path)
    with weights_lib.atomic_path(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")


def _to_yaml(content):
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)
