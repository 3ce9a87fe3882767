"""A tiny configuration of every model: the property tests run over all of them."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from vaezoo.models.agave import AGAVE
from vaezoo.models.fame import FAME
from vaezoo.models.hierarchical_pixelvae import HierarchicalPixelVAE
from vaezoo.models.iafvae import IAFVAE
from vaezoo.models.pixelcnnpp import PixelCNNPP
from vaezoo.models.pixelvae import PixelVAE
from vaezoo.models.pixelvaepp import PixelVAEPP
from vaezoo.models.vlae import VLAE
from vaezoo.models.vlae_cifar import ConvVLAE

_PIXELVAE = {"image_shape": (8, 8, 1), "latent_size": 3, "num_layers": 3, "filters": 4}
_COLOUR = {"image_shape": (4, 4, 3), "filters": 9}
_VLAE = {
    "image_shape": (8, 8, 1),
    "latent_size": 4,
    "flow_steps": 2,
    "flow_hidden_sizes": (7, 8),
    "filters": 4,
    "num_layers": 4,
}
_CONV_VLAE = {
    "image_shape": (8, 8, 3),
    "levels": 5,
    "latent_channels": 2,
    "widths": (4, 5),
    "flow_steps": 3,
    "flow_hidden_filters": (5,),
    "window": "4x2",
    "filters": 6,
    "num_blocks": 2,
    "num_components": 2,
}
_FAME = {
    "image_shape": (4, 4, 3),
    "levels": 5,
    "latent_sizes": (2, 2, 3, 2, 3),
    "filters": 6,
    "pixelcnn_filters": 6,
}

_HIERARCHICAL = {
    "image_shape": (8, 8, 3),
    "levels": 5,
    "widths": (4, 5, 6),
    "depths": (1, 1, 1),
    "z1_halvings": 1,
    "z1_channels": 2,
    "z2_size": 3,
    "pixel_filters": 7,
    "num_blocks": 2,
    "prior_filters": 8,
    "embedding_size": 0,
    "prior_scale_floor_steps": 0,
}

# name -> (class, arguments)
_PIXELCNNPP = {
    "image_shape": (8, 8, 3),
    "levels": 5,
    "filters": 6,
    "num_resnets": 1,
    "num_components": 3,
    "dropout": 0.2,
}
_LADDER = {
    "image_shape": (8, 8, 3),
    "levels": 8,
    "num_levels": 2,
    "latent_filters": 2,
}
CONFIGURATIONS = {
    "vae": (PixelVAE, {**_PIXELVAE, "num_layers": 0}),
    "pixelvae": (PixelVAE, {**_PIXELVAE, "gated": False}),
    "gated_pixelvae": (PixelVAE, _PIXELVAE),
    "gated_pixelvae_noup": (PixelVAE, {**_PIXELVAE, "upsample": False}),
    "gated_pixelvae_free_maps": (PixelVAE, {**_PIXELVAE, "mask_z_channels": False}),
    "pixelvae_free_maps": (
        PixelVAE,
        {**_PIXELVAE, "mask_z_channels": False, "gated": False},
    ),
    "pixelcnn": (PixelVAE, {**_PIXELVAE, "latent_size": 0, "gated": False}),
    "gated_pixelcnn": (PixelVAE, {**_PIXELVAE, "latent_size": 0}),
    "gated_pixelvae_one_layer": (PixelVAE, {**_PIXELVAE, "num_layers": 1}),
    "gated_pixelvae_colour": (
        PixelVAE,
        {**_PIXELVAE, **_COLOUR, "upsample": False},
    ),
    "pixelcnn_colour": (
        PixelVAE,
        {**_PIXELVAE, **_COLOUR, "latent_size": 0, "gated": False},
    ),
    "vlae": (VLAE, _VLAE),
    "vlae_iaf": (
        VLAE,
        {
            **_VLAE,
            "prior": "gaussian",
            "posterior": "iaf",
            "flow_transform": "gated",
            "tied": False,
            "mask_z_channels": True,
        },
    ),
    "vlae_factorised": (
        VLAE,
        {**_VLAE, "decoder": "factorised", "flow_transform": "affine"},
    ),
    "vlae_unconditional": (VLAE, {**_VLAE, "latent_size": 0}),
    "conv_vlae": (ConvVLAE, _CONV_VLAE),
    "conv_vlae_gray": (
        ConvVLAE,
        {**_CONV_VLAE, "encoder": "densenet", "window": "7x4", "grayscale": True},
    ),
    "fame": (FAME, _FAME),
    "fame_gray": (
        FAME,
        {
            **_FAME,
            "image_shape": (6, 6, 1),
            "levels": 2,
            "spatial": False,
            "filters": 16,
        },
    ),
    "fame_noconcat": (FAME, {**_FAME, "concatenate": False}),
    "pixelvae2": (HierarchicalPixelVAE, _HIERARCHICAL),
    "pixelvae2_one_level": (
        HierarchicalPixelVAE,
        {
            **_HIERARCHICAL,
            "image_shape": (8, 8, 1),
            "z1_channels": 0,
            "pixel_filters": 8,  # the maps are added as they are
            "pooled": True,
        },
    ),
    "pixelcnnpp": (
        PixelCNNPP,
        _PIXELCNNPP,
    ),
    "pixelcnnpp_unstrided": (
        PixelCNNPP,
        {
            "image_shape": (6, 6, 1),
            "levels": 2,
            "filters": 6,
            "num_resnets": 1,
            "dropout": 0.0,
            "strided": False,
        },
    ),
    "pixelvaepp": (
        PixelVAEPP,
        {
            **_PIXELCNNPP,
            "z1_size": 4,
            "z2_size": 3,
            "z3_size": 2,
            "num_chains": 20,
            "num_sweeps": 2,
        },
    ),
    "pixelvaepp_gaussian": (
        PixelVAEPP,
        {
            "image_shape": (12, 12, 1),
            "levels": 2,
            "filters": 6,
            "num_resnets": 1,
            "dropout": 0.0,
            "strided": False,
            "prior": "gaussian",
            "z1_size": 4,
            "z2_size": 0,
            "z3_size": 0,
        },
    ),
    "iafvae": (IAFVAE, {**_LADDER, "filters": 5}),
    "agave": (
        AGAVE,
        {
            **_PIXELCNNPP,
            **_LADDER,
            "ladder_filters": 5,
            "auxiliary": "half",
            "auxiliary_levels": 4,
        },
    ),
}
INDEPENDENT = (
    "vae",
    "iafvae",
    "vlae_factorised",
    "fame_noconcat",
)  # pixels are independent given the latents
WITHOUT_LATENTS = (
    "pixelcnn",
    "gated_pixelcnn",
    "pixelcnn_colour",
    "vlae_unconditional",
    "pixelcnnpp",
    "pixelcnnpp_unstrided",
)
AUTOREGRESSIVE = [name for name in CONFIGURATIONS if name not in INDEPENDENT]
WITH_LATENTS = [name for name in CONFIGURATIONS if name not in WITHOUT_LATENTS]


# One of each kind. Where a test takes seconds a model, the others are slow tests.
REPRESENTATIVE = (
    "vae",
    "gated_pixelvae_noup",
    "pixelcnn_colour",
    "vlae",
    "fame",
)


def others_slow(names):
    """Parameters of a test: `names`, marked slow but for those above."""
    return [
        name if name in REPRESENTATIVE else pytest.param(name, marks=pytest.mark.slow)
        for name in names
    ]


def build(name, *, initialized=True, seed=0):
    """The tiny model `name`, its weights seeded and initialised on random images."""
    keras.utils.set_random_seed(seed)
    cls, arguments = CONFIGURATIONS[name]
    model = cls(**arguments)
    if model.binary_latents:  # a prior of weights 0 would hide much
        for variable in model.trainable_variables:
            if variable.name.startswith("rbm"):
                shape = variable.shape
                variable.assign(tf.random.stateless_normal(shape, [seed, len(shape)]))
        model.estimate_log_z(num_chains=50, num_temperatures=20)
    if initialized:
        model.initialize(images_for(model, 64))
        _fill_zeros(model, seed)
    return model


def _fill_zeros(model, seed):
    """Perturb what starts at 0 and hides what is behind it: injections."""
    for variable in model.trainable_variables:
        if "injection" in variable.path:
            noise = tf.random.stateless_normal(variable.shape, [seed, 1])
            variable.assign(0.3 * noise)


@functools.cache
def shared(name):
    """`build(name)`, built once: for tests that change neither weights nor layers.

    What the model compiles for one test is there for the next.
    """
    return build(name)


def images_for(model, num, *, seed=0):
    """Random uint8 images that the model takes, `[num, height, width, channels]`."""
    generator = np.random.default_rng(seed)
    shape = (num, *model.image_shape)
    # Correlated with a row-wise brightness, so that there is something to learn.
    rate = generator.uniform(0.1, 0.9, (num, 1, 1, 1))
    if model.levels == 2:
        return (generator.uniform(size=shape) < rate).astype(np.uint8)
    noise = generator.integers(0, model.levels, shape)
    return (noise * rate).astype(np.uint8)


def likelihood(model, num, *, seed=0):
    """`p(x | z)` for `num` draws of z from the prior."""
    seeds = tf.range(num, dtype=tf.int64) + seed
    values, context = model.generate(seeds, temperature=tf.ones([num]))
    return model.likelihood(values, context=context, seeds=seeds)
