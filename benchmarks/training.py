"""Training: speed against the same networks in PyTorch, on two devices, and memory.

    pip install "vaezoo[benchmark]"
    python benchmarks/training.py [--names fame_cifar10 ...] [--batch N] [--rounds 3]
    python benchmarks/training.py --devices
    python benchmarks/training.py --memory

A step of vaezoo is the one that `model.fit` runs, with the entry's optimizer: bound,
gradient, clipping, update, average of the weights; of an entry with several phases, as
in the last, on whole images. PyTorch's is the same of the networks in
`pytorch_networks.py`, run eagerly in the default memory layout; `masked` is the masked
PixelCNN of the sampling goals. Each side runs in processes of its own, and they
alternate. Nothing else may run: PyTorch's threads spin where they wait for each other,
so one busy core makes it tens of times slower, and vaezoo hardly. Where that cannot be
had, OMP_WAIT_POLICY=PASSIVE in the environment lets them sleep.

`--devices` compares one CPU device with two logical ones under `MirroredStrategy`, the
same global batch; they share the cores, so it shows what distribution costs. `--memory`
gives the peak resident memory of training. Both are in float32. bfloat16 gains only
where the processor multiplies it (AVX512-BF16, AMX); elsewhere it is emulated and slow.
"""

import argparse
import importlib
import itertools
import os
import statistics
import sys
import time
from typing import NamedTuple

import numpy as np
from common import (
    alternate,
    in_new_process,
    masked_model,
    num_parameters,
    peak_memory,
    print_machine,
    print_table,
)

from vaezoo import datasets
from vaezoo.training.run import keep_freed_memory
from vaezoo.zoo import recipes, registry

GOAL = 1.2
PRECISIONS = ("float32", "mixed_bfloat16")
WARM_UP, STEPS = 2, 4
NAMES = (
    "fame_cifar10",
    "fame_mnist_dynamic",
    "pixelcnnpp_cifar10_small",
    "pixelvae_mnist_static",
    "vlae_mnist_static",
)


class Subject(NamedTuple):
    """A model to train: a class and its arguments, a dataset's name, a recipe."""

    class_name: str
    arguments: dict
    dataset: str
    recipe: recipes.Recipe

    @classmethod
    def named(cls, name):
        """A model of the zoo, or `masked`."""
        if name == "masked":
            recipe = recipes.Recipe(
                optimizer="adam", learning_rate=1e-3, batch_size=32, epochs=1
            )
            return cls("Masked", {}, "mnist_static", recipe)
        entry = registry.describe(name)
        model = entry.model
        return cls(model.class_name, model.arguments, entry.dataset, entry.phases[-1])

    @property
    def batch(self):
        """Images in a batch, where none is asked for."""
        return 16 if datasets.info(self.dataset).levels == 256 else 32

    def images(self, batch):
        """Noise in the place of images, uint8 `[batch, height, width, channels]`."""
        info = datasets.info(self.dataset)
        shape = (batch, *info.image_shape)
        return np.random.default_rng(0).integers(0, info.levels, shape, np.uint8)


def train_vaezoo(name, batch, precision="float32", devices=1):
    """Train by `model.fit`; returns images a second and the number of parameters."""
    import keras
    import tensorflow as tf

    from vaezoo import models
    from vaezoo.zoo import recipes

    keep_freed_memory()  # as `vaezoo train` does
    keras.config.set_dtype_policy(precision)
    strategy = tf.distribute.get_strategy()
    if devices > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        logical = [tf.config.LogicalDeviceConfiguration()] * devices
        tf.config.set_logical_device_configuration(cpu, logical)
        strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(devices)])
    subject = Subject.named(name)
    with strategy.scope():
        if name == "masked":
            model = masked_model()
        else:
            model = models.get_class(subject.class_name)(**subject.arguments)
        model.compile(**recipes.compile_arguments(subject.recipe))
    times = []

    class Clock(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            times.append(time.perf_counter())

    data = tf.data.Dataset.from_tensors(subject.images(batch)).repeat()
    steps = WARM_UP + STEPS
    model.fit(data, steps_per_epoch=steps, verbose=0, callbacks=[Clock()])
    return images_per_second(times, batch), num_parameters(model.trainable_variables)


def train_pytorch(name, batch, precision):
    """Train the network in PyTorch; returns what `train_vaezoo` does."""
    import pytorch_networks
    import torch
    from torch.optim.swa_utils import get_ema_multi_avg_fn

    subject = Subject.named(name)
    network = getattr(pytorch_networks, subject.class_name)(**subject.arguments)
    parameters = list(network.parameters())
    recipe = subject.recipe
    options = {
        "lr": recipe.learning_rate,
        "betas": (recipe.beta_1, recipe.beta_2),
        "eps": recipe.epsilon,
    }
    if recipe.optimizer == "adam":
        optimizer = torch.optim.Adam(parameters, fused=True, **options)
    else:
        optimizer = torch.optim.Adamax(parameters, **options)
    averages = []
    if recipe.ema_momentum is not None:
        averages = [parameter.detach().clone() for parameter in parameters]
        update_averages = get_ema_multi_avg_fn(recipe.ema_momentum)
    images = torch.from_numpy(subject.images(batch)).permute(0, 3, 1, 2).contiguous()
    clip, limit = clipping(recipe.gradient_clip, num_dims=images[0].numel())
    is_mixed = precision == "mixed_bfloat16"
    times = []
    for _ in range(WARM_UP + STEPS):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            loss = network(images).mean()
        loss.backward()
        if clip is not None:
            clip(parameters, limit)
        optimizer.step()
        if averages:
            update_averages(averages, parameters, None)
        times.append(time.perf_counter())
    count = sum(parameter.numel() for parameter in parameters)
    return images_per_second(times, batch), count


def clipping(gradient_clip, *, num_dims):
    """PyTorch's function of parameters and a limit, or `None`, and that limit."""
    from torch.nn import utils

    if gradient_clip is None:
        return None, None
    clips = {"global_norm": utils.clip_grad_norm_, "value": utils.clip_grad_value_}
    scale = num_dims if gradient_clip.unit == "per_dim" else 1
    return clips[gradient_clip.by], gradient_clip.limit * scale


def images_per_second(times, batch):
    """Of the steps after the warm-up, from the times at which all steps ended."""
    return batch * STEPS / (times[-1] - times[WARM_UP - 1])


def memory_of_training(name, batch):
    """Peak memory in MiB of the imports, and with some steps of training."""
    for module in ("vaezoo.training", "vaezoo.models.vae"):
        importlib.import_module(module)
    imported = peak_memory()
    train_vaezoo(name, batch)
    return imported, peak_memory()


def compare(first, second, rounds):
    """Alternate two jobs that give images a second and a number of parameters.

    Returns:
        counts: list of the parameters of each.
        cells: list of str, images a second of each and their ratio, of the first to
            the second: the medians of the rounds.
        ratio: float, that ratio.
    """
    runs = alternate(first, second, rounds=rounds)
    speeds = [[speed for speed, _ in side] for side in runs]
    ratio = statistics.median(a / b for a, b in zip(*speeds, strict=True))
    cells = [f"{statistics.median(side):.1f}" for side in speeds]
    return [side[0][1] for side in runs], [*cells, f"{ratio:.2f}x"], ratio


def compare_with_pytorch(args):
    print_machine(("tensorflow", "torch"))
    if os.getloadavg()[0] > 0.5:
        print("The machine is busy, which costs PyTorch more: see --help.\n")
    rows = []
    for name, precision in itertools.product(args.names, args.precisions):
        batch = args.batch or Subject.named(name).batch
        job = name, batch, precision
        (ours, theirs), cells, ratio = compare(
            (train_vaezoo, *job), (train_pytorch, *job), args.rounds
        )
        print(f"{name}: {ours:,} parameters in vaezoo, {theirs:,} in PyTorch")
        if ours != theirs:
            sys.exit("The networks must have the same parameters to be compared.")
        verdict = "met" if ratio >= GOAL else "missed"
        rows.append([name, f"{ours:,}", precision, batch, *cells, verdict])
    print()
    speeds = ("vaezoo images/s", "PyTorch images/s", "ratio", f"goal {GOAL}x")
    print_table(["model", "parameters", "precision", "batch", *speeds], rows)


def compare_devices(args):
    print_machine()
    rows = []
    for name in args.names:
        batch = args.batch or Subject.named(name).batch
        job = train_vaezoo, name, batch, "float32"
        _, cells, _ = compare((*job, 2), (*job, 1), args.rounds)
        rows.append([name, batch, *cells])
    speeds = ("two devices, images/s", "one device, images/s", "ratio")
    print_table(["model", "batch", *speeds], rows)


def measure_memory(args):
    print_machine()
    rows = []
    batches = [args.batch] if args.batch else [32, 128]
    for name, batch in itertools.product(args.names, batches):
        sizes = in_new_process(memory_of_training, name, batch)
        rows.append([name, batch, *(f"{size:.0f} MiB" for size in sizes)])
    print_table(["model", "batch", "after import", "peak of training"], rows)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--names", nargs="+", default=NAMES, help="models of the zoo, or `masked`"
    )
    parser.add_argument("--batch", type=int, help="32; 16 for images of 256 levels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS
    )
    modes = parser.add_mutually_exclusive_group()
    for flag, mode in (("--devices", compare_devices), ("--memory", measure_memory)):
        modes.add_argument(flag, dest="mode", action="store_const", const=mode)
    parser.set_defaults(mode=compare_with_pytorch)
    args = parser.parse_args()
    args.mode(args)


if __name__ == "__main__":
    main()
