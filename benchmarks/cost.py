"""Parameters, floating-point operations and gradient bytes of the zoo's models.

    python benchmarks/cost.py [--names fame_cifar10 ...]
    python benchmarks/cost.py --step [--names pixelcnnpp_cifar10 ...] [--batch 1]

Computed, not timed: TensorFlow's profiler counts the operations of the ELBO of one
image, forwards, additions and multiplications each as one. A training step costs about
three times that an image. The bytes are what a replica adds to the all-reduce of each
step: one float32 a parameter, whatever the batch.

`--step` computes the operations of a training step, the gradients' and the optimizer's
included, and measures two of them: `fit` by the recipe of the entry's last phase, on
noise, each model in a new process. The peak is of the whole process, `fit`'s first call
and data-dependent initialisation included; the seconds are of the second step.
"""

import argparse
import time

import common  # quiets TensorFlow
import numpy as np
import tensorflow as tf

from vaezoo.zoo import recipes, registry

GOAL = 16  # GiB, of a step on one image


def float_operations(graph):
    """Operations in a graph, additions and multiplications each as one."""
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    return tf.compat.v1.profiler.profile(graph, options=options).total_float_ops


def count(name):
    """Parameters, FLOPs of an image's ELBO and bytes of the gradient of one model."""
    model = registry.load(name, weights=None)
    images = tf.TensorSpec([1, *model.image_shape], tf.uint8)
    graph = tf.function(model.call, autograph=False).get_concrete_function(images).graph
    parameters = common.num_parameters(model.trainable_variables)
    return parameters, float_operations(graph), 4 * parameters


def train(name, batch):
    """Parameters, FLOPs of a step, GiB at the peak and seconds of one model's steps."""
    import keras

    model = registry.load(name, weights=None)
    recipe = registry.describe(name).phases[-1]
    model.compile(**recipes.compile_arguments(recipe))
    shape = (batch, *model.image_shape)
    noise = np.random.default_rng(0).integers(0, model.levels, shape, np.uint8)
    times = []

    class Clock(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            times.append(time.perf_counter())

    data = tf.data.Dataset.from_tensors(noise).repeat()
    model.fit(data, steps_per_epoch=2, verbose=0, callbacks=[Clock()])
    peak = common.peak_memory() / 1024
    # Of a shape that is known, as the profiler needs.
    images = tf.TensorSpec(shape, tf.uint8)
    step = tf.function(model.train_step, autograph=False)
    flops = float_operations(step.get_concrete_function(images).graph)
    parameters = common.num_parameters(model.trainable_variables)
    return parameters, flops, peak, times[1] - times[0]


def print_costs(args):
    rows = []
    for name in args.names or registry.list_models():
        parameters, flops, size = count(name)
        rows.append(
            [name, f"{parameters:,}", f"{flops / 1e6:,.1f}", f"{size / 1e6:.1f}"]
        )
    header = ["model", "parameters", "MFLOPs of an image's ELBO", "MB all-reduced"]
    common.print_table(header, rows)


def print_steps(args):
    rows = []
    for name in args.names or ["pixelcnnpp128_cifar10", "pixelcnnpp_cifar10"]:
        parameters, flops, peak, seconds = common.in_new_process(
            train, name, args.batch
        )
        verdict = "" if args.batch > 1 else "met" if peak < GOAL else "missed"
        cells = [f"{flops / 1e9:,.0f}", f"{peak:.1f}", f"{seconds:.1f}"]
        rows.append([name, f"{parameters:,}", args.batch, *cells, verdict])
    common.print_machine()
    measures = ["GFLOPs a step", "peak GiB", "s a step", f"goal {GOAL} GiB"]
    common.print_table(["model", "parameters", "batch", *measures], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+")
    parser.add_argument("--step", action="store_true", help="train, and measure")
    parser.add_argument("--batch", type=int, default=1, help="of the step")
    args = parser.parse_args()
    (print_steps if args.step else print_costs)(args)


if __name__ == "__main__":
    main()
