"""Parameters, floating-point operations and gradient bytes of the zoo's models.

    python benchmarks/cost.py [--names fame_cifar10 ...]

Computed, not timed: TensorFlow's profiler counts the operations of the ELBO of one
image, forwards, additions and multiplications each as one. A training step costs about
three times that an image. The bytes are what a replica adds to the all-reduce of each
step: one float32 a parameter, whatever the batch.
"""

import argparse

import common  # noqa: F401, quiet TensorFlow
import tensorflow as tf

from vaezoo.zoo import registry


def count(name):
    """Parameters, FLOPs of an image's ELBO and bytes of the gradient of one model."""
    model = registry.load(name, weights=None)
    images = tf.TensorSpec([1, *model.image_shape], tf.uint8)
    graph = tf.function(model.call).get_concrete_function(images).graph
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    flops = tf.compat.v1.profiler.profile(graph, options=options).total_float_ops
    parameters = sum(v.shape.num_elements() for v in model.trainable_variables)
    return parameters, flops, 4 * parameters


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", default=registry.list_models())
    rows = []
    for name in parser.parse_args().names:
        parameters, flops, size = count(name)
        rows.append(
            [name, f"{parameters:,}", f"{flops / 1e6:,.1f}", f"{size / 1e6:.1f}"]
        )
    header = ["model", "parameters", "MFLOPs of an image's ELBO", "MB all-reduced"]
    common.print_table(header, rows)


if __name__ == "__main__":
    main()
