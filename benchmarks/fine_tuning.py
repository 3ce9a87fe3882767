"""Fine-tuning for a few steps: the moving average against the raw weights.

    python benchmarks/fine_tuning.py [--steps 50] [--model vlae_mnist_static]

A model of digits is trained on other images, Caltech-101 silhouettes, by its entry's
fine-tuning recipe. An average that lags is still the old model after a short run; the
goal is that it ends within 2 % of the raw weights' bound. `constant momentum` is that
of an average started at the old weights whose momentum does not rise, for comparison.
All are scored on the same test images with the same noise.
"""

import argparse

from common import print_machine, print_table


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vlae_mnist_static")
    parser.add_argument("--dataset", default="caltech101")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=500, help="test images")
    args = parser.parse_args()

    import keras
    import numpy as np

    import vaezoo

    model = vaezoo.load(args.model)
    start = model.get_weights()
    momentum = model.zoo_entry.fine_tune.ema_momentum
    test = next(iter(vaezoo.load_dataset(args.dataset, "test", batch_size=args.images)))
    train = vaezoo.load_dataset(
        args.dataset, "train", batch_size=args.batch, shuffle=True
    )

    class Record(keras.callbacks.Callback):
        """The raw weights of the last step, and their constant-momentum average."""

        raw = None
        constant = start

        def on_train_batch_end(self, batch, logs=None):
            self.raw = self.model.get_weights()
            self.constant = [
                momentum * old + (1 - momentum) * new
                if np.issubdtype(new.dtype, np.floating)
                else new
                for old, new in zip(self.constant, self.raw, strict=True)
            ]

    def bound(weights):
        model.set_weights(weights)
        return float(np.mean(model.elbo(test)))

    record = Record()
    model.fit(
        train.repeat(),
        steps_per_epoch=args.steps,
        epochs=1,
        verbose=0,
        callbacks=[record],
    )
    weights = {
        "before": start,
        "raw weights": record.raw,
        "moving average": model.get_weights(),  # what `fit` leaves
        f"constant momentum {momentum}": record.constant,
    }
    bounds = {name: bound(values) for name, values in weights.items()}
    print_machine()
    print(
        f"{args.model}, {args.steps} steps of {args.batch} images of {args.dataset}; "
        f"ELBO in nats on {len(test)} test images\n"
    )
    print_table(
        ["weights", "ELBO", "ratio to the raw weights'"],
        [
            [name, f"{value:.2f}", f"{value / bounds['raw weights']:.3f}"]
            for name, value in bounds.items()
        ],
    )


if __name__ == "__main__":
    main()
