"""PixelVAE++: what the paper says of it alone."""

import numpy as np
import pytest
import tensorflow as tf

from tests import tiny
from vaezoo.models.pixelvaepp import PixelVAEPP

_BINARY = {
    "image_shape": (28, 28, 1),
    "levels": 2,
    "num_resnets": 3,
    "z1_size": 400,
    "z2_size": 0,
    "z3_size": 0,
    "num_chains": 1,
}


@pytest.mark.parametrize(
    ("arguments", "num_latents", "sides", "expected"),
    [
        ({**_BINARY, "filters": 64}, 400, (200, 200), 6_546_820),
        (
            {**_BINARY, "filters": 32, "strided": False},
            400,
            (200, 200),
            2_468_036,
        ),
        pytest.param(
            {"num_chains": 1}, 1792, (640, 1152), 39_769_151, marks=pytest.mark.slow
        ),
    ],
)
def test_latents_and_parameter_counts(arguments, num_latents, sides, expected):
    """Section 4 and appendix D: 1,792 latents on CIFAR-10, 40 M parameters."""
    model = PixelVAEPP(**arguments)
    assert model.latent_shapes == {"z": (num_latents,)}
    assert (model.rbm.num_left, model.rbm.num_right) == sides
    assert sum(v.shape.num_elements() for v in model.trainable_variables) == expected


def test_the_pass_over_the_image_is_shared():
    """What inference computed of the image is what the likelihood computes anew."""
    model = tiny.shared("pixelvaepp")
    images = tiny.images_for(model, 3)
    seeds = tf.constant([1, 2, 3], tf.int64)
    latents, context = model.infer(model.features(images), seeds=seeds)
    values = {"z": latents["z"].value}
    np.testing.assert_array_equal(np.unique(values["z"]), [0, 1])
    shared = model.likelihood(values, context=context, seeds=seeds)
    alone = model.likelihood(values, seeds=seeds)
    np.testing.assert_allclose(
        shared.log_prob(images), alone.log_prob(images), rtol=1e-6
    )


def test_bad_arguments():
    with pytest.raises(ValueError, match="`z1_size` must be an integer of at least 2"):
        PixelVAEPP(**{**_BINARY, "z1_size": 0})
    with pytest.raises(ValueError, match="`prior` must be"):
        PixelVAEPP(**{**_BINARY, "prior": "none"})
    with pytest.raises(ValueError, match="one channel"):
        PixelVAEPP(image_shape=(8, 8, 3), levels=2)
    with pytest.raises(ValueError, match="divisible by 4"):
        PixelVAEPP(**{**_BINARY, "image_shape": (30, 30, 1)})
    with pytest.raises(ValueError, match="Only an RBM has a log Z"):
        tiny.shared("pixelvaepp_gaussian").estimate_log_z()
