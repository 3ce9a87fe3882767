"""A training step against the same network written plainly in PyTorch.

    pip install "vaezoo[benchmark]"
    python benchmarks/training_step.py [--batch 32] [--rounds 3]

The network is the masked PixelCNN of the sampling goals, without weight
normalisation on PyTorch's side, where a user would write the masked kernel as a
product; both sides use Adam, float32 and all cores, and run in processes of their
own that alternate.
"""

import argparse
import statistics
import subprocess
import sys
import time

from common import print_machine, print_table

STEPS = 6


def run_tensorflow(batch):
    import keras
    import tensorflow as tf
    from common import masked_network

    from vaezoo.distributions import images

    network, head = masked_network(), images.Bernoulli(1)
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build(network.trainable_variables)
    data = tf.cast(tf.random.uniform([batch, 28, 28, 1]) < 0.2, tf.uint8)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            distribution = images.AutoregressiveImage(
                network, head, image_shape=(28, 28, 1), batch_size=batch
            )
            loss = -tf.reduce_mean(distribution.log_prob(data))
        variables = network.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    return lambda: step().numpy()


def run_pytorch(batch):
    import torch

    class MaskedConv2d(torch.nn.Conv2d):
        def __init__(self, inputs, outputs, kind):
            super().__init__(inputs, outputs, 3, padding=1)
            mask = torch.zeros(3, 3)
            mask[0] = 1
            mask[1, : 1 + (kind == "B")] = 1
            self.register_buffer("mask", mask)

        def forward(self, x):
            weight = self.weight * self.mask
            return torch.nn.functional.conv2d(x, weight, self.bias, padding=1)

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = MaskedConv2d(1, 64, "A")
            self.blocks = torch.nn.ModuleList(
                MaskedConv2d(64, 64, "B") for _ in range(7)
            )
            self.logits = torch.nn.Conv2d(64, 1, 1)

        def forward(self, x):
            x = self.first(x)
            for block in self.blocks:
                x = x + block(torch.relu(x))
            return self.logits(torch.relu(x))

    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    data = (torch.rand(batch, 1, 28, 28) < 0.2).float()

    def step():
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            network(data), data, reduction="sum"
        )
        (loss / batch).backward()
        optimizer.step()
        return loss.item()

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["tensorflow", "pytorch"])
    args = parser.parse_args()
    if args.only:
        step = {"tensorflow": run_tensorflow, "pytorch": run_pytorch}[args.only]
        step = step(args.batch)
        step()
        start = time.perf_counter()
        for _ in range(STEPS):
            step()
        elapsed = time.perf_counter() - start
        print(f"result {args.batch * STEPS / elapsed:.1f}")
        return
    print_machine()
    speeds = {"tensorflow": [], "pytorch": []}
    for _ in range(args.rounds):
        for name in speeds:
            command = [sys.executable, __file__, "--only", name]
            command += ["--batch", str(args.batch)]
            output = subprocess.run(command, check=True, capture_output=True, text=True)
            speeds[name].append(float(output.stdout.splitlines()[-1].split()[1]))
    ratios = [t / p for t, p in zip(*speeds.values(), strict=True)]
    rows = [
        [
            number + 1,
            *(f"{speeds[name][number]:.1f}" for name in speeds),
            f"{ratio:.2f}x",
        ]
        for number, ratio in enumerate(ratios)
    ]
    medians = [statistics.median(values) for values in speeds.values()]
    ratio = f"{statistics.median(ratios):.2f}x"
    rows.append(["median", *(f"{value:.1f}" for value in medians), ratio])
    print_table(["round", "vaezoo images/s", "PyTorch images/s", "ratio"], rows)


if __name__ == "__main__":
    main()
