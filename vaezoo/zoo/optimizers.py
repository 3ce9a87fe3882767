"""An optimizer of recipes that Keras does not have."""

from typing import Any

import keras


@keras.saving.register_keras_serializable(package="vaezoo")
class KernelMuon(keras.optimizers.Muon):
    """Keras's Muon, for the kernels of convolutions too.

    The momentum of a kernel's gradient is replaced by about the nearest matrix of
    orthogonal columns or rows (Jordan, 2024, "Muon: An optimizer for hidden layers in
    neural networks"), scaled to the size of Adam's update, so that a learning rate of
    Adam's fits (Liu et al., 2025, section 2.2). Keras does so for matrices alone; here
    a kernel is one with a column for each of its outputs, whatever shape it has.
    Biases, gains and scalars are trained by Adam. A step costs fifteen products of
    matrices no larger than each kernel, few beside a convolution over an image.

    It is not called Muon, since Keras reads its own class from a config of that name.

    Args: as of `keras.optimizers.Muon`; weights do not decay unless it is asked for.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        *,
        weight_decay: Any = None,
        adam_weight_decay: Any = None,
        **others: Any,
    ):
        super().__init__(
            learning_rate,
            weight_decay=weight_decay,
            adam_weight_decay=adam_weight_decay,
            **others,
        )

    def _should_use_adamw(self, variable):
        return len(variable.shape) < 2

    def zeropower_via_newtonschulz5(self, x, steps):
        """About the nearest orthogonal matrix, float32 of the shape of a kernel.

        Args:
            x: float32 `[..., outputs]`, a kernel's gradient.
            steps: int, number of Newton-Schulz iterations.
        """
        matrix = super().zeropower_via_newtonschulz5(_matrix(x), steps)
        return keras.ops.reshape(matrix, x.shape)

    def lr_adjust(self, x):
        """A kernel's update of singular values 1, scaled to the size of Adam's."""
        return keras.ops.reshape(super().lr_adjust(_matrix(x)), x.shape)


def _matrix(kernel):
    return keras.ops.reshape(kernel, [-1, kernel.shape[-1]])
