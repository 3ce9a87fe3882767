"""What a user writes, with the types that an editor shows. Checked and never run."""

from pathlib import Path
from typing import assert_type

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

import vaezoo
from vaezoo.models.vae import VAE
from vaezoo.zoo.entries import ZooEntry

# The zoo.
names = vaezoo.list_models("*_mnist_*", dataset="mnist_static", trained=True)
assert_type(names, list[str])
assert_type(vaezoo.describe(names[0]), ZooEntry)
model = vaezoo.load(Path("runs") / "mine", weights=None, image_shape=(32, 32, 3))
assert_type(model, VAE)
assert_type(model.zoo_entry.dataset, str)
assert_type(model.image_shape, tuple[int, int, int])

# Samples and scores.
seeds = vaezoo.row_seeds(0, 16)
assert_type(seeds, npt.NDArray[np.int64])
images = model.sample(16, seed=seeds, temperature=np.linspace(0.5, 1.5, 16))
assert_type(images, tf.Tensor)
assert_type(model.log_likelihood(images, num_importance_samples=100), tf.Tensor)
assert_type(model.elbo_terms(images.numpy(), seed=1)["kl"], tf.Tensor)
codes = model.encode(images, mode="mean")
assert_type(codes, dict[str, tf.Tensor])
model.decode(codes, jit=False)
mask = np.zeros([16, 32, 32, 1], np.uint8)
assert_type(model.complete(images, mask, num_rounds=3), tf.Tensor)

# Data, training, evaluation.
dataset = vaezoo.load_dataset("mnist_static", "train", batch_size=64, shuffle=True)
assert_type(dataset, tf.data.Dataset[tf.Tensor])
history = model.fit(dataset, epochs=5, validation_data=dataset)
assert_type(history, keras.callbacks.History)
results = vaezoo.evaluate(model, dataset, images=100, verbose=1)
assert_type(results, dict[str, tuple[float, float]])
assert_type(vaezoo.train("fame_cifar10", out="runs/1", strategy="mirrored"), VAE)
assert_type(vaezoo.receptive_field(model), npt.NDArray[np.bool_])

# Serving.
assert_type(vaezoo.export(model, "served/mine/1", signatures=["sample"]), Path)
with vaezoo.Client("localhost:8500", "mine") as client:
    assert_type(client.sample(16, seed=0), npt.NDArray[np.uint8])
    assert_type(client.encode(images), dict[str, npt.NDArray[np.float32]])
    client.log_likelihood(images, seed=seeds)

# What an editor is to underline: the ignored error has to be there.
vaezoo.laod  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
model.sample("16")  # pyright: ignore[reportArgumentType]
model.sample(16, 0)  # pyright: ignore[reportCallIssue]
model.encode(images, mode="mode")  # pyright: ignore[reportArgumentType]
vaezoo.evaluate(model, dataset, verbose="on")  # pyright: ignore[reportArgumentType]
vaezoo.train("fame_cifar10")  # pyright: ignore[reportCallIssue]
