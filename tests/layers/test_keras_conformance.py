"""Keras's own test of layers, on every public layer; and a user's model of them."""

import keras
import numpy as np
import pytest
from keras.src import testing

from vaezoo.decoders.gated_pixelcnn import GatedPixelCNN
from vaezoo.decoders.pixelcnn import PixelCNN
from vaezoo.decoders.pixelcnnpp import GatedResnet, PixelCNNPPNetwork
from vaezoo.layers.causal import CausalConv2D, VerticalConv2D
from vaezoo.layers.dropout import Dropout
from vaezoo.layers.made import MADE
from vaezoo.layers.shifted import ShiftedConv2D, ShiftedConv2DTranspose
from vaezoo.layers.weight_norm import Conv2D, Conv2DTranspose, Dense

IMAGES = (2, 5, 5, 3)
NETWORK = {
    "num_colours": 3,
    "num_outputs": 6,
    "filters": 6,
    "num_layers": 2,
    "kernel_size": 3,
    "first_kernel_size": 5,
    "head_filters": (6,),
}

# layer -> its arguments, and the shapes of what comes in and out
CASES = {
    Dense: ({"filters": 4, "activation": "elu"}, (2, 5), (2, 4)),
    Conv2D: ({"filters": 4, "kernel_size": 3, "strides": 2}, IMAGES, (2, 3, 3, 4)),
    Conv2DTranspose: ({"filters": 4, "kernel_size": 3}, IMAGES, (2, 10, 10, 4)),
    CausalConv2D: (
        {"filters": 4, "kernel_size": 3, "mask_type": "A"},
        IMAGES,
        (2, 5, 5, 4),
    ),
    VerticalConv2D: ({"filters": 4, "kernel_size": 3}, IMAGES, (2, 5, 5, 4)),
    PixelCNN: (NETWORK, IMAGES, (2, 5, 5, 6)),
    GatedPixelCNN: (NETWORK, IMAGES, (2, 5, 5, 6)),
    ShiftedConv2D: (
        {"filters": 4, "kernel_size": (2, 3), "stream": "down", "strides": 2},
        IMAGES,
        (2, 3, 3, 4),
    ),
    ShiftedConv2DTranspose: (
        {"filters": 4, "stream": "down_right"},
        IMAGES,
        (2, 10, 10, 4),
    ),
    GatedResnet: ({"filters": 3, "stream": "down"}, IMAGES, IMAGES),
    PixelCNNPPNetwork: (
        {"num_outputs": 6, "filters": 4, "num_resnets": 1},
        (2, 4, 8, 3),
        (2, 4, 8, 6),
    ),
    MADE: ({"event_size": 5, "hidden_sizes": (7, 8)}, (2, 5), ((2, 5),)),
    Dropout: ({"rate": 0.5}, (2, 5), (2, 5)),
}


def name_of(layer):
    return layer.__name__


@pytest.mark.slow
@pytest.mark.parametrize("layer", CASES, ids=name_of)
def test_conformance(layer):
    """Configuration, building, symbolic shapes, a training step, mixed precision."""
    arguments, inputs, outputs = CASES[layer]
    testing.TestCase("run_layer_test").run_layer_test(
        layer,
        arguments,
        input_shape=inputs,
        expected_output_shape=outputs,
        supports_masking=False,
        # Training, a dropout needs the rows' seeds, which Keras does not pass.
        run_training_check=layer is not Dropout,
    )


@pytest.mark.parametrize("layer", [Dense, Conv2D, CausalConv2D, PixelCNN], ids=name_of)
def test_a_users_model_of_layers_is_loaded_again(layer, tmp_path):
    arguments, inputs, _ = CASES[layer]
    model = keras.Sequential([keras.Input(inputs[1:]), layer(**arguments)])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    values = np.random.default_rng(0).normal(size=inputs).astype(np.float32)
    np.testing.assert_array_equal(loaded(values), model(values))


def test_every_class_is_registered_under_a_name_of_its_own():
    """Of two that share a name, Keras would load the one for the other."""
    from vaezoo import models

    classes = [*CASES, *map(models.get_class, models._MODULES)]
    names = [keras.saving.get_registered_name(cls) for cls in classes]
    assert len(set(names)) == len(names)
    for name, cls in zip(names, classes, strict=True):
        assert keras.saving.get_registered_object(name) is cls
