"""What a model computes in an export or a kept program: names, inputs, functions."""

import tensorflow as tf

from vaezoo import units
from vaezoo.models import computations

NUM_ROUNDS = 10  # of `complete`


def functions(model, *, num_importance_samples=1, jit=False, sampling_options=None):
    """The functions that a model has, by the names of their signatures.

    Args:
        model: a `vaezoo.models.vae.VAE`.
        num_importance_samples: int. K of `log_likelihood`.
        jit: bool. Whether to compile the scans over pixels with XLA.
        sampling_options: dict of the options of `sample`; the model's own where `None`.

    Returns:
        dict of name to a pair: a dict of an input's name to its `tf.TensorSpec`, whose
        first axis is the batch; and a function of such inputs, by name, to a dict of
        outputs.
    """
    seed = {"seed": tf.TensorSpec([None], tf.int64)}
    images = {"images": tf.TensorSpec([None, *model.image_shape], tf.uint8)}
    size = model.image_shape[:2]
    mask = {"mask": tf.TensorSpec([None, *size, 1], tf.uint8)}
    latents = {
        name: tf.TensorSpec([None, *shape], tf.float32)
        for name, shape in model.latent_shapes.items()
    }

    def sample(seed, temperature):
        images = computations.sample(
            model, seed, temperature, jit=jit, **(sampling_options or {})
        )
        return {"images": images}

    def complete(images, mask, seed):
        filled = computations.complete(
            model, images, mask, seed, num_rounds=NUM_ROUNDS, jit=jit
        )
        return {"images": filled}

    def reconstruct(images, seed):
        return {"images": computations.reconstruct(model, images, seed, jit=jit)}

    def decode(seed, **values):
        return {"images": computations.decode(model, values, seed, jit=jit)}

    def encode(images, seed):
        return computations.encode(model, images, seed)

    def log_likelihood(images, seed):
        nats = computations.log_likelihood(
            model, images, seed, num_importance_samples=num_importance_samples
        )
        bits = units.bits_per_dim(nats, model.num_dims)
        return {"log_likelihood": nats, "bits_per_dim": bits}

    temperature = {"temperature": tf.TensorSpec([None], tf.float32)}
    named = {
        "sample": (seed | temperature, sample),
        "log_likelihood": (images | seed, log_likelihood),
        "encode": (images | seed, encode),
        "decode": (latents | seed, decode),
        "reconstruct": (images | seed, reconstruct),
        "complete": (images | mask | seed, complete),
    }
    if not latents:
        for name in ("encode", "decode", "reconstruct"):
            del named[name]
    return named
