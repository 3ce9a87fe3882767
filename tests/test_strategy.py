"""Two replicas of b rows train as one replica of 2b (in a process of its own)."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys

import keras
import numpy as np
import tensorflow as tf

sys.path.insert(0, {tests!r})
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2
)
import tiny

def train(strategy, name, options):
    with strategy.scope():
        model = tiny.build(name)
        model.compile(
            keras.optimizers.Adam(1e-3, use_ema=True, ema_momentum=0.9),
            kl_warmup_steps=8,
            gradient_clip={{"by": "global_norm", "limit": 5.0, "unit": "per_image"}},
            **options,
        )
    images = tiny.images_for(model, 29)  # batches of 8, 8, 8 and 5
    data = tf.data.Dataset.from_tensor_slices(images).batch(8)
    logs = model.fit(data, epochs=2, verbose=0).history
    scores = model.evaluate(data, verbose=0, return_dict=True)
    weights = np.concatenate([v.numpy().ravel() for v in model.trainable_variables])
    return weights, logs, scores

one, two = (
    train(strategy, {name!r}, {options!r})
    for strategy in (
        tf.distribute.get_strategy(),
        tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]),
    )
)
# Sums in another order: float32 rounding, amplified by Adam's first steps.
np.testing.assert_allclose(one[0], two[0], atol=2e-5)
for mine, theirs in zip(one[1:], two[1:]):
    for key in mine:
        np.testing.assert_allclose(mine[key], theirs[key], rtol=1e-4, err_msg=key)
print("equal")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gated_pixelvae_noup", {"free_bits_nats": 0.5}),
        ("vlae", {"soft_free_bits_nats": 4.0}),
    ],
)
def test_two_replicas_equal_one(name, options):
    """Ragged last batch, (soft) free bits, warm-up, clipping and EMA included."""
    tests = str(Path(__file__).parent)
    script = SCRIPT.format(tests=tests, name=name, options=options)
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip().endswith("equal")
