"""PixelVAE: what its paper says of this model and of no other."""

import numpy as np
import tensorflow as tf

from vaezoo.models.pixelvae import Encoder


def test_the_encoder_pads_before_the_fifth_convolution():
    """Authors' code: four layers, 7x7 padded to 8x8, four more, the last at 4x4."""
    encoder = Encoder(2)
    encoder(tf.zeros([1, 28, 28, 1]))  # builds
    sizes = []
    for layer in encoder.convolutions:
        call = layer.call
        layer.call = lambda x, call=call: sizes.append(x.shape[1]) or call(x)
    encoder(tf.zeros([1, 28, 28, 1]))
    assert sizes == [28, 28, 14, 14, 8, 8, 4, 4]


def test_the_pad_is_convolved():
    """With biases, what lies where the zeros were is not zero one layer later."""
    encoder = Encoder(2)
    images = tf.zeros([1, 6, 6, 1])  # 6, then 3 padded to 4
    encoder(images)
    padded, halving = encoder.convolutions[2:4]
    padded.bias.assign(tf.ones_like(padded.bias))
    seen = []
    call = halving.call
    halving.call = lambda x: seen.append(x) or call(x)
    encoder(images)
    assert seen[0].shape[1:3] == (4, 4) and np.all(seen[0][:, 3] > 0)
