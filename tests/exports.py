"""What an export is held to: in a process with TensorFlow alone, Python's answers."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import tiny
from vaezoo import row_seeds
from vaezoo.serving import saved_model

MANIFEST = Path(saved_model.EXTRA_FOLDER) / saved_model.MANIFEST_FILE


def inputs_for(model, name, num):
    """Inputs of a signature: dict of arrays of `num` rows."""
    generator = np.random.default_rng(1)
    known = {
        "seed": row_seeds(7, num),
        "temperature": np.linspace(0.5, 1.5, num).astype(np.float32),
        "images": tiny.images_for(model, num, seed=2),
        "mask": generator.integers(0, 2, (num, *model.image_shape[:2], 1), np.uint8),
    } | {
        key: generator.normal(size=(num, *shape)).astype(np.float32)
        for key, shape in model.latent_shapes.items()
    }
    for key in model.binary_latents:
        known[key] = np.float32(known[key] > 0)
    keys = {
        "sample": ["seed", "temperature"],
        "decode": [*model.latent_shapes, "seed"],
        "complete": ["images", "mask", "seed"],
    }.get(name, ["images", "seed"])
    return {key: known[key] for key in keys}


def in_python(model, name, inputs, num_importance_samples):
    """What the model's methods give for inputs of a signature."""
    seed = inputs["seed"]
    if name == "sample":
        temperature = inputs["temperature"]
        images = model.sample(len(seed), seed=seed, temperature=temperature, jit=False)
    elif name == "decode":
        latents = {key: inputs[key] for key in model.latent_shapes}
        images = model.decode(latents, seed=seed, jit=False)
    elif name == "reconstruct":
        images = model.reconstruct(inputs["images"], seed=seed, jit=False)
    elif name == "complete":
        images = model.complete(inputs["images"], inputs["mask"], seed=seed, jit=False)
    elif name == "encode":
        return model.encode(inputs["images"], seed=seed)
    else:
        nats = model.log_likelihood(
            inputs["images"], seed=seed, num_importance_samples=num_importance_samples
        )
        bits = -nats / (model.num_dims * np.log(2))
        return {"log_likelihood": nats, "bits_per_dim": bits}
    return {"images": images}


def run_alone(script, *arguments):
    """Run a script in a process that finds neither vaezoo nor the tests."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    process = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=Path(arguments[0]).parent,
        env=environment | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr


FRESH = """
import sys
import numpy as np
import tensorflow as tf

folder, data, tolerance = sys.argv[1:]
data, tolerance = np.load(data), float(tolerance)
loaded = tf.saved_model.load(folder)
signatures = loaded.signatures
checked = {"serving_default"}
for case in {key.rpartition("/inputs/")[0] for key in data if "/inputs/" in key}:
    name = case.partition("/")[0]
    checked.add(name)
    specs = signatures[name].structured_input_signature[1]
    inputs = {key: tf.constant(data[f"{case}/inputs/{key}"]) for key in specs}
    for key, value in signatures[name](**inputs).items():
        expected = data[f"{case}/outputs/{key}"]
        assert value.dtype == expected.dtype and value.shape == expected.shape
        if value.dtype == tf.uint8:
            np.testing.assert_array_equal(value, expected, case)
        else:  # sums in another order: a few units in the last place of the largest
            atol = tolerance * max(1.0, np.max(np.abs(expected), initial=0.0))
            np.testing.assert_allclose(value, expected, rtol=tolerance, atol=atol)
assert checked == set(signatures), checked
assert not {"vaezoo", "tensorflow_probability", "tf_keras"} & set(sys.modules)
"""


def check(model, folder, *, sizes, tolerance=2e-6):
    """Compare every signature with the model's methods, for batches of `sizes`.

    Images are to be equal, and floats, sums over batches of other sizes, within the
    tolerance, relative to the largest value.
    """
    manifest = json.loads((folder / MANIFEST).read_text())
    # Without latents the score is exact, and K is null.
    num_importance_samples = manifest["num_importance_samples"] or 1
    arrays = {}
    for name in manifest["signatures"]:
        for size in sizes:
            inputs = inputs_for(model, name, size)
            outputs = in_python(model, name, inputs, num_importance_samples)
            case = f"{name}/{size}"
            arrays |= {f"{case}/inputs/{key}": value for key, value in inputs.items()}
            arrays |= {f"{case}/outputs/{key}": value for key, value in outputs.items()}
    with tempfile.TemporaryDirectory() as directory:
        answers = Path(directory) / "answers.npz"
        np.savez(answers, **arrays)
        run_alone(FRESH, folder, answers, tolerance)
