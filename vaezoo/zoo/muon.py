"""Muon for networks of convolutions: an optimizer whose updates are orthogonal."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="vaezoo")
class Muon(keras.optimizers.Muon):
    """Keras's Muon, for the kernels of convolutions too.

    The momentum of a kernel's gradient is replaced by about the nearest matrix of
    orthogonal columns or rows (Jordan, 2024, "Muon: An optimizer for hidden layers in
    neural networks"), scaled to the size of Adam's update, so that a learning rate of
    Adam's fits (Liu et al., 2025, section 2.2). Keras does so for matrices alone; here
    a kernel is one with a column for each of its outputs, whatever shape it has.
    Biases, gains and scalars are trained by Adam. A step costs five products of
    matrices the size of each kernel, few beside those of a convolution over an image.

    Args: as of `keras.optimizers.Muon`.
    """

    def _should_use_adamw(self, variable):
        return len(variable.shape) < 2

    def zeropower_via_newtonschulz5(self, x, steps):
        """About the nearest orthogonal matrix, float32 of the shape of a kernel.

        Args:
            x: float32 `[..., outputs]`, a kernel's gradient.
            steps: int, number of Newton-Schulz iterations.
        """
        matrix = super().zeropower_via_newtonschulz5(_matrix(x), steps)
        return tf.reshape(matrix, x.shape)

    def lr_adjust(self, x):
        """A kernel's update of singular values 1, scaled to the size of Adam's."""
        return tf.reshape(super().lr_adjust(_matrix(x)), x.shape)


def _matrix(kernel):
    return tf.reshape(kernel, [-1, kernel.shape[-1]])
