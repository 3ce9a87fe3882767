"""Recalibration of batch normalisation, for every model that has some."""

import keras
import tensorflow as tf

from vaezoo import sampling
from vaezoo.models import computations


def recalibrate_batch_norm(model, dataset):
    """Set the moving statistics of batch normalisation to their means over a dataset.

    Training moves them by a hundredth a step, so they lag behind the weights, and the
    top-down statistics with them. Every batch counts the same. Cost: one pass of
    encoder and decoder an image.

    Args:
        model: a `vaezoo.models.vae.VAE`.
        dataset: a `tf.data.Dataset` of batches of uint8 images, or an iterable of
            arrays `[batch, height, width, channels]`.

    Raises:
        ValueError: if the dataset is empty or the model has no batch normalisation.
    """
    layers = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    if not layers:
        raise ValueError(
            "Only a model with batch normalisation has statistics to recalibrate. "
            f"Received: {type(model).__name__}, which has none."
        )
    # The mean of the first n batches: each new one weighs 1 / n.
    momentum = tf.Variable(0.0, trainable=False)
    before = [layer.momentum for layer in layers]

    @tf.function(reduce_retracing=True)
    def update(images, seeds):
        computations.elbo_terms(model, images, seeds, training=True)

    count = 0
    try:
        for layer in layers:
            layer.momentum = momentum
        for batch in dataset:
            images = model.images_of(batch)
            momentum.assign(count / (count + 1.0))
            seeds = tf.range(tf.shape(images)[0], dtype=tf.int64)
            update(images, sampling.fold_in(count, seeds))
            count += 1
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.momentum = value
    if count == 0:
        raise ValueError(
            "Batch normalisation is recalibrated on at least one batch. Received: an "
            "empty dataset. Pass batches of training images."
        )
