"""The input rules: what each takes, what it refuses, and in which words."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from vaezoo import checks, datasets, evaluation
from vaezoo.models import computations
from vaezoo.models.pixelvae import PixelVAE
from vaezoo.serving import saved_model
from vaezoo.training import checkpoints, phases
from vaezoo.zoo import registry

SHAPE = (8, 8, 1)
IMAGES = np.ones((2, *SHAPE), np.uint8)
LATENTS = {"y": (3,), "z": (4, 4, 2)}
CODES = {"y": np.zeros((2, 3)), "z": np.zeros((2, 4, 4, 2), np.float32)}
SEEDS = np.array([3, -4], np.int64)


def images(value, **options):
    return checks.images(value, image_shape=SHAPE, **{"levels": 2} | options)


def mask(value):
    return checks.mask(value, image_shape=SHAPE, num=2)


def latents(value):
    return checks.latents(value, latent_shapes=LATENTS)


# What is taken -> what the code goes on with.
GOOD = {
    "an int": (checks.integer, ("num", 3), {}, 3),
    "an integer of numpy": (checks.integer, ("num", np.int64(3)), {}, 3),
    "an unsigned integer": (checks.integer, ("num", np.uint8(3)), {}, 3),
    "an array of one integer": (checks.integer, ("num", np.array(3)), {}, 3),
    "no integer": (checks.integer, ("num", None), {"optional": True}, None),
    "the least": (checks.integer, ("num", 0), {"minimum": 0}, 0),
    "the most": (checks.integer, ("num", 256), {"maximum": 256}, 256),
    "a shape": (checks.image_shape, ([np.int32(28), 28, 1],), {}, (28, 28, 1)),
    "sizes": (checks.integers, ("size", (4, 5)), {"of": ("a", "b")}, (4, 5)),
    "a number": (checks.number, ("timeout", 0.5), {"above": 0}, 0.5),
    "an integer as number": (checks.number, ("timeout", 3), {"above": 0}, 3),
    "a float of numpy": (checks.number, ("limit", np.float32(0.5)), {}, 0.5),
    "the least number": (checks.number, ("bits", 0), {"minimum": 0}, 0),
    "the largest number": (checks.number, ("weight", 1), {"maximum": 1}, 1),
    "no number": (checks.number, ("minutes", None), {"optional": True}, None),
    "a choice": (checks.choice, ("mode", "mean", ("sample", "mean")), {}, "mean"),
    "a choice of numpy": (checks.choice, ("c", np.int64(3), (None, 3)), {}, 3),
    "no choice": (checks.choice, ("channels", None, (None, 1, 3)), {}, None),
    "images": (images, (IMAGES,), {}, IMAGES),
    "8 bits": (images, (IMAGES * 255,), {"levels": 256}, IMAGES * 255),
    "5 levels": (images, (IMAGES * 4,), {"levels": 5}, IMAGES * 4),
    "images in a list": (images, (list(IMAGES),), {}, IMAGES),
    "a mask": (mask, (IMAGES,), {}, IMAGES),
    "a bool mask": (mask, (IMAGES > 0,), {}, IMAGES),
    "one mask for all": (mask, (IMAGES[0],), {}, IMAGES[[0, 0]]),
    "a seed": (checks.seed, (-(2**63),), {}, -(2**63)),
    "a seed of numpy": (checks.seed, (np.int32(7),), {}, 7),
    "a seed of the rows": (checks.seeds, (np.uint32(7), 2), {}, 7),
    "seeds": (checks.seeds, (SEEDS, 2), {}, SEEDS),
    "seeds in a list": (checks.seeds, ([3, -4], 2), {}, SEEDS),
    "a temperature": (checks.temperatures, (0.5, 2), {}, np.float32([0.5, 0.5])),
    "an integer one": (checks.temperatures, (2, 2), {}, np.float32([2, 2])),
    "temperatures": (checks.temperatures, ([0.5, 2], 2), {}, np.float32([0.5, 2])),
    "latents": (latents, (CODES,), {}, CODES),
}


@pytest.mark.parametrize("case", GOOD)
def test_what_is_taken(case):
    check, arguments, options, expected = GOOD[case]
    actual = check(*arguments, **options)
    if isinstance(expected, dict):
        assert list(actual) == list(LATENTS)
        for name, value in expected.items():
            assert actual[name].dtype == np.float32
            np.testing.assert_array_equal(actual[name], value)
    elif isinstance(expected, np.ndarray):
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected)
    else:
        assert actual == expected
        if isinstance(expected, int) and check is not checks.number:
            assert type(actual) is int  # also where NumPy's was given


A_COUNT = "`num` must be a positive integer. Received: num={}."
A_SHAPE = "`image_shape` must be (height, width, channels), 3 positive integers."
A_BATCH = "`images` must be uint8 [n, 8, 8, 1]. Received: {}."
MIXED = IMAGES * np.arange(2, dtype=np.uint8).reshape(2, 1, 1, 1)  # of 0 and 1
AS_THEY_ARE = "They are levels already: `images.astype('uint8')`"
A_MASK = checks.mask_rule(SHAPE) + " Received: {}."
A_SEED = "`seed` must be an integer that fits in int64. Received: seed={}."
ROW_SEEDS = "`seed` must be an int, or int64 [2], one a row. Received: {}."
TEMPERATURE = checks.temperature_rule() + " Received: {}."
EXACTLY = (
    "`latents` must hold exactly y [n, 3] and z [n, 4, 4, 2], floats with one n of at "
    "least 1. Received: {}."
)

# What is refused -> how the message begins.
BAD = {
    "zero": (checks.integer, ("num", 0), {}, A_COUNT.format(0)),
    "a bool": (checks.integer, ("num", True), {}, A_COUNT.format(True)),
    "a float": (checks.integer, ("num", 2.0), {}, A_COUNT.format(2.0)),
    "text": (checks.integer, ("num", "3"), {}, A_COUNT.format("'3'")),
    "none": (checks.integer, ("num", None), {}, A_COUNT.format(None)),
    "two": (checks.integer, ("num", [1, 2]), {}, A_COUNT.format([1, 2])),
    "a bool of numpy": (checks.integer, ("num", np.bool_(True)), {}, A_COUNT[:35]),
    "zero or none": (
        checks.integer,
        ("num", 0),
        {"optional": True, "advice": "None is all."},
        "`num` must be a positive integer or None. Received: num=0. None is all.",
    ),
    "below the least": (
        checks.integer,
        ("num_rounds", -1),
        {"minimum": 0},
        "`num_rounds` must be an integer of at least 0. Received: num_rounds=-1.",
    ),
    "above the most": (
        checks.integer,
        ("levels", 257),
        {"minimum": 2, "maximum": 256},
        "`levels` must be an integer in 2..256. Received: levels=257.",
    ),
    "two sizes": (checks.image_shape, ((28, 28),), {}, A_SHAPE),
    "a size of 0": (checks.image_shape, ((28, 0, 1),), {}, A_SHAPE),
    "a float size": (checks.image_shape, ((28, 28.0, 1),), {}, A_SHAPE),
    "a bool size": (checks.image_shape, ((28, 28, True),), {}, A_SHAPE),
    "one size": (checks.image_shape, (28,), {}, A_SHAPE),
    "a text": (checks.image_shape, ("281",), {}, A_SHAPE),
    "no time": (
        checks.number,
        ("timeout", 0),
        {"above": 0},
        "`timeout` must be a finite number, above 0. Received: timeout=0.",
    ),
    "nan": (
        checks.number,
        ("bits", np.nan),
        {"minimum": 0},
        "`bits` must be a finite number, at least 0. Received: bits=nan.",
    ),
    "infinity": (checks.number, ("x", np.inf), {}, "`x` must be a finite number. Rec"),
    "a bool as number": (checks.number, ("x", True), {}, "`x` must be a finite"),
    "a text as number": (checks.number, ("x", "1"), {}, "`x` must be a finite"),
    "too much": (
        checks.number,
        ("weight", 1.5),
        {"above": 0, "maximum": 1},
        "`weight` must be a finite number, above 0 and at most 1. Received: weight=",
    ),
    "no such mode": (
        checks.choice,
        ("mode", "median", ("sample", "mean")),
        {},
        "`mode` must be 'sample' or 'mean'. Received: mode='median'.",
    ),
    "true is not 1": (
        checks.choice,
        ("channels", True, (None, 1, 3)),
        {},
        "`channels` must be None, 1 or 3. Received: channels=True.",
    ),
    **{
        f"{levels} levels of {received}": (
            images,
            (value,),
            {"levels": levels},
            A_BATCH.format(received) + f" {advice}.",
        )
        for levels, value, received, advice in (
            (2, MIXED * 1.0, "dtype=float64, values 0 to 1", AS_THEY_ARE),
            (2, MIXED > 0, "dtype=bool, values 0 to 1", AS_THEY_ARE),
            (2, MIXED.tolist(), "dtype=int64, values 0 to 1", AS_THEY_ARE),
            (256, MIXED * 255.0, "dtype=float64, values 0 to 255", AS_THEY_ARE),
            (
                2,
                MIXED / 4,
                "dtype=float64, values 0 to 0.25",
                "Binarize them, as `(images > 0.125).astype('uint8')`",
            ),
            (
                256,
                MIXED / 4,
                "dtype=float64, values 0 to 0.25",
                "Scale them, as `(images * 255).round().astype('uint8')`",
            ),
            (
                256,
                2.0 * MIXED - 1,
                "dtype=float64, values -1 to 1",
                "Scale them, as `((images + 1) * 127.5).round().astype('uint8')`",
            ),
            (
                2,
                MIXED * np.nan,
                "dtype=float64, values nan to nan",
                "Scale them to whole levels in 0..1, and `.astype('uint8')`",
            ),
        )
    },
    "digits of 17 levels": (
        images,
        (MIXED * 16,),
        {},
        "`images` must have values in 0..1. Received: values up to 16. Binarize them, "
        "as `(images > 8).astype('uint8')`.",
    ),
    "one image": (images, (IMAGES[0],), {}, A_BATCH.format("shape=(8, 8, 1)")),
    "small": (images, (IMAGES[:, 1:],), {}, A_BATCH.format("shape=(2, 7, 8, 1)")),
    "ragged images": (images, ([IMAGES[0], [1]],), {}, A_BATCH[:45]),
    "no image": (images, (None,), {}, A_BATCH.format("a NoneType")[:-1]),
    "no images": (images, (IMAGES[:0],), {}, "`images` must have at least one row."),
    "a grey image": (
        images,
        (IMAGES * 255,),
        {},
        "`images` must have values in 0..1. Received: values up to 255. Binarize",
    ),
    "a sixth level": (
        images,
        (IMAGES * 5,),
        {"levels": 5},
        "`images` must have values in 0..4. Received: values up to 5. Reduce them, as "
        "`(images // 2).astype('uint8')`.",
    ),
    "a mask of 2": (mask, (IMAGES * 2,), {}, A_MASK.format("values up to 2")),
    "a float mask": (mask, (IMAGES * 1.0,), {}, A_MASK.format("dtype=float64")),
    "a mask of colours": (
        mask,
        (np.zeros((2, 8, 8, 3), np.uint8),),
        {},
        A_MASK.format("shape=(2, 8, 8, 3) for 2 images"),
    ),
    "too few masks": (
        mask,
        (IMAGES[:1],),
        {},
        A_MASK.format("shape=(1, 8, 8, 1) for 2 images"),
    ),
    "rows": (
        checks.same_rows,
        (),
        {"images": IMAGES, "mask": IMAGES[:1]},
        "`images` and `mask` must have the same number of rows. "
        "Received: 2 of images, 1 of mask.",
    ),
    "a float seed": (checks.seed, (0.5,), {}, A_SEED.format(0.5)),
    "a bool seed": (checks.seeds, (True, 2), {}, A_SEED.format(True)),
    "a large seed": (checks.seeds, (2**63, 2), {}, A_SEED.format(2**63)),
    "a text seed": (checks.seeds, ("a", 2), {}, A_SEED.format("'a'")),
    "three seeds": (
        checks.seeds,
        ([1, 2, 3], 2),
        {},
        ROW_SEEDS.format("shape=(3,), dtype=int64"),
    ),
    "short seeds": (
        checks.seeds,
        (SEEDS.astype(np.int32), 2),
        {},
        ROW_SEEDS.format("shape=(2,), dtype=int32"),
    ),
    "cold": (checks.temperatures, (0, 2), {}, TEMPERATURE.format("temperature=0")),
    "negative": (checks.temperatures, ([1, -1], 2), {}, TEMPERATURE[:-4]),
    "no temperature": (checks.temperatures, (np.nan, 2), {}, TEMPERATURE[:-4]),
    "hot": (checks.temperatures, (np.inf, 2), {}, TEMPERATURE[:-4]),
    "hot in float32": (checks.temperatures, (1e300, 2), {}, TEMPERATURE[:-4]),
    "cold in float32": (checks.temperatures, (1e-60, 2), {}, TEMPERATURE[:-4]),
    "three temperatures": (checks.temperatures, ([1, 1, 1], 2), {}, TEMPERATURE[:-4]),
    "a text as temperature": (checks.temperatures, ("1", 2), {}, TEMPERATURE[:-4]),
    "a bool as temperature": (checks.temperatures, (True, 2), {}, TEMPERATURE[:-4]),
    "a latent is missing": (
        latents,
        ({"y": CODES["y"]},),
        {},
        EXACTLY.format("y float64[2, 3]"),
    ),
    "an unknown latent": (latents, (CODES | {"x": CODES["y"]},), {}, EXACTLY[:-4]),
    "another shape": (latents, (CODES | {"y": np.zeros((2, 4))},), {}, EXACTLY[:-4]),
    "other rows": (latents, (CODES | {"y": np.zeros((3, 3))},), {}, EXACTLY[:-4]),
    "no rows": (latents, ({k: v[:0] for k, v in CODES.items()},), {}, EXACTLY[:-4]),
    "a scalar": (latents, (CODES | {"y": 0.0},), {}, EXACTLY[:-4]),
    "bools": (latents, (CODES | {"y": CODES["y"] > 0},), {}, EXACTLY[:-4]),
    "an array": (latents, (CODES["y"],), {}, EXACTLY.format("a ndarray")),
    "a latent of nan": (
        latents,
        (CODES | {"y": np.full((2, 3), np.nan)},),
        {},
        "`y` must be finite. Received: y with nan.",
    ),
    "no latents": (
        lambda values: checks.latents(values, latent_shapes={}),
        ({},),
        {},
        "`latents` must hold exactly nothing",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(case):
    check, arguments, options, message = BAD[case]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as error:
        check(*arguments, **options)
    assert "Received: " in str(error.value)
    assert str(error.value).endswith(".")


def test_no_tensorflow():
    """The client's process and `import vaezoo` do without, until they need it."""
    script = "import sys, vaezoo.checks; print('tensorflow' in sys.modules)"
    command = [sys.executable, "-c", script]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert process.stdout.strip() == "False", process.stderr


@pytest.fixture(scope="module")
def model():
    """A model whose sizes are numpy's, and which computes nothing."""
    sizes = {"latent_size": np.int64(3), "num_layers": np.int32(0)}
    return PixelVAE(image_shape=np.array(SHAPE), filters=np.uint8(4), **sizes)


@pytest.fixture
def counts(monkeypatch):
    """The counts that reach the computations, which give zeros."""
    received = {}

    def fake(name, outputs):
        def compute(model, *arguments, **options):
            received[name] = {k: v for k, v in options.items() if k != "jit"}
            return outputs(tf.shape(arguments[0])[0])

        monkeypatch.setattr(computations, name, compute)

    for name in ("sample", "complete"):
        fake(name, lambda num: tf.zeros([num, *SHAPE], tf.uint8))
    fake("log_likelihood", lambda num: tf.zeros([num]))
    fake("encode_mean", lambda num: {"z": tf.zeros([num, 3])})
    terms = ("elbo", "reconstruction", "kl", "kl/z")
    fake("elbo_terms", lambda num: ({name: tf.zeros([num]) for name in terms}, {}))
    return received


@pytest.mark.filterwarnings("ignore:The export has no TF Serving warm-up")
def test_counts_may_be_numpys_everywhere(model, counts, tmp_path):
    """They come out of arrays; what is written down and compiled for is an int."""
    two, three = np.int32(2), np.uint8(3)
    batches = datasets.load_dataset("digits", "test", batch_size=three, seed=two)
    assert next(iter(batches)).shape == (3, *SHAPE)
    assert len(model.sample(three, seed=two, jit=False)) == 3
    model.complete(IMAGES, IMAGES, num_rounds=two, jit=False)
    assert type(counts["complete"]["num_rounds"]) is int
    model.log_likelihood(IMAGES, num_importance_samples=two)
    assert type(counts["log_likelihood"]["num_importance_samples"]) is int
    options = {"images": three, "batch_size": two, "num_importance_samples": three}
    results = evaluation.evaluate(model, np.concatenate([IMAGES, IMAGES]), **options)
    assert results["log_likelihood"] == (0.0, 0.0)

    options = {"num_importance_samples": two, "max_batch_size": three}
    folder = saved_model.export(
        model, tmp_path / "1", signatures="log_likelihood", **options
    )
    manifest = folder / saved_model.EXTRA_FOLDER / saved_model.MANIFEST_FILE
    written = json.loads(manifest.read_text())
    assert {name: written[name] for name in options} == options
    assert written["model"]["arguments"]["num_layers"] == 0

    model.compile(
        "adam", gradient_accumulation_steps=two, kl_warmup_steps=three, seed=two
    )
    json.dumps(model.get_compile_config())  # as `save` does
    options = {"entry": None, "progress": None, "every_steps": two}
    checkpoints.CheckpointCallback(tmp_path, **options)
    options = {"max_steps": None, "changes": {}, "seed": three, "precision": None}
    (recipe,) = phases.of_run(
        registry.describe("pixelvae_digits").phases, epochs=two, **options
    )
    assert (recipe.epochs, recipe.seed) == (2, 3)
    assert type(recipe.epochs) is type(recipe.seed) is int
