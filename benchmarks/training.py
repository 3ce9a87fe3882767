"""Images a second that the zoo's models train on, in float32 and in bfloat16.

    python benchmarks/training.py [--names fame_cifar10 ...] [--batch N] [--rounds 3]

A step is the one that `model.fit` runs, with the entry's optimizer: bound, gradient,
update, average of the weights. Each precision runs in a process of its own, and they
alternate. bfloat16 gains only where the processor multiplies it (AVX512-BF16, AMX, a
GPU); elsewhere it is emulated and slow.
"""

import argparse
import statistics
import subprocess
import sys
import time

from common import print_machine, print_table

STEPS = 4
PRECISIONS = ("float32", "mixed_bfloat16")
NAMES = (
    "fame_cifar10",
    "fame_mnist_dynamic",
    "fame_noconcat_mnist_dynamic",
    "pixelvae_mnist_static",
    "vlae_mnist_static",
)


def measure(name, batch, precision):
    """Print the images a second of one model, and its parameters."""
    import keras
    import numpy as np
    import tensorflow as tf

    from vaezoo import zoo

    keras.config.set_dtype_policy(precision)
    model = zoo.load(name, weights=None)
    generator = np.random.default_rng(0)
    shape = (batch, *model.image_shape)
    images = generator.integers(0, model.levels, shape).astype("uint8")
    data = tf.data.Dataset.from_tensors(images).repeat()
    times = []

    class Clock(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            times.append(time.perf_counter())

    model.fit(data, steps_per_epoch=STEPS + 2, verbose=0, callbacks=[Clock()])
    count = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    print(f"result {batch * STEPS / (times[-1] - times[1]):.2f} {count}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", default=NAMES)
    parser.add_argument("--batch", type=int, help="32; 16 for images of 256 levels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS)
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        measure(args.only[0], args.batch, args.only[1])
        return
    print_machine()
    rows = []
    for name in args.names:
        batch = args.batch or (16 if "cifar10" in name or "imagenet" in name else 32)
        speeds = {precision: [] for precision in args.precisions}
        for _ in range(args.rounds):
            for precision in speeds:
                command = [sys.executable, __file__, "--only", name, precision]
                command += ["--batch", str(batch)]
                output = subprocess.run(
                    command, check=True, capture_output=True, text=True
                )
                _, speed, count = output.stdout.splitlines()[-1].split()
                speeds[precision].append(float(speed))
        medians = [statistics.median(values) for values in speeds.values()]
        cells = [f"{value:.1f}" for value in medians]
        rows.append([name, f"{int(count):,}", batch, *cells])
    header = [f"{precision} images/s" for precision in args.precisions]
    print_table(["model", "parameters", "batch", *header], rows)


if __name__ == "__main__":
    main()
