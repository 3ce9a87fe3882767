"""Experiments of "PixelVAE: A Latent Variable Model for Natural Images", section 4.1.

The paper shows curves and pictures and gives no sizes. These are runs of a small size,
whose budget the tables state.
"""

from vaezoo import plots
from vaezoo.experiments.comparison import (
    Variant,
    base_entry,
    budget,
    cell,
    compare,
    measure,
    num_parameters,
    receptive_field,
    short_recipe,
    test_images,
    train_variants,
    write,
)

_ENTRY = "gated_pixelvae_mnist_static"
# Section 4.1: one layer sees pixels at most 2 away, so that the first is 5x5 too.
_SIZE = {"filters": 16, "first_kernel_size": 5}
_BUDGET = {
    "dataset": "mnist_static",
    # In one epoch the weight of the KL rises before the latents are in use, and they
    # stay out of it.
    "epochs": 4,
    "images": 500,
    "num_importance_samples": 16,
    "num_seeds": 1,
}
_LAYERS = (0, 1, 2, 4, 8)


def layers(out, *, seed, verbose, **options):
    """NLL, KL and reconstruction against the number of PixelCNN layers (figures 4, 5).

    With latents and without: the paper finds that the KL falls sharply with the first
    layer, that the bound gains most by it, and that with few layers PixelVAE is much
    better than a PixelCNN of as many.
    """
    options = _BUDGET | options
    dataset, epochs = options["dataset"], options["epochs"]
    num_samples = options["num_importance_samples"]
    recipe = _recipe(dataset, epochs)
    entry = base_entry(_ENTRY, _SIZE, recipe)
    data = test_images(dataset, options["images"])
    seeds = range(seed, seed + options["num_seeds"])

    def trained(variant):
        models = train_variants(
            entry,
            variant,
            out=out,
            dataset=dataset,
            epochs=epochs,
            seeds=seeds,
            verbose=verbose,
        )
        return models[0], measure(models, data, num_samples, seed)

    rows, bars, labels = [], [], []
    for num_layers in _LAYERS:
        model, of_vae = trained(Variant({"num_layers": num_layers}))
        reconstruction = -of_vae["elbo"] - of_vae["kl"]
        rows.append(
            [
                num_layers,
                receptive_field(model),
                num_parameters(model),
                cell(-of_vae["elbo"]),
                cell(of_vae["kl"]),
                cell(reconstruction),
                cell(-of_vae["bound"]),
            ]
        )
        bars.append([of_vae["kl"].mean(), reconstruction.mean()])
        labels.append(f"PixelVAE, {num_layers}")
        if num_layers == 0:  # without latents every image would be as likely
            rows[-1] += ["-"] * 3
            continue
        model, alone = trained(Variant({"latent_size": 0, "num_layers": num_layers}))
        rows[-1] += [
            num_parameters(model),
            cell(-alone["bound"]),
            cell(alone["bound"] - of_vae["bound"], sign="+"),
        ]
        bars.append([0, -alone["bound"].mean()])
        labels.append(f"PixelCNN, {num_layers}")
    header = ["PixelCNN layers", "receptive field", "parameters of PixelVAE"]
    header += ["-ELBO, nats", "KL, nats", "reconstruction, nats"]
    header += [f"-L_{num_samples}, nats", "parameters of PixelCNN"]
    header += ["-log p of PixelCNN, nats", f"-L_{num_samples} minus -log p"]
    text = (
        f"{budget(_ENTRY, _SIZE, recipe, dataset, epochs, data, seeds)} PixelCNN is "
        "the decoder alone, without latents. In the picture: KL (dark) and "
        "reconstruction of PixelVAE, and -log p of PixelCNN, by the number of layers. "
        "The paper has curves and no figures: a sharp fall of the KL with the first "
        "layer, and PixelVAE far ahead of PixelCNN where layers are few."
    )
    picture = plots.bars(bars, labels=labels, axis="nats an image: KL, reconstruction")
    return write(out, "PixelVAE layers", text, header, rows, picture)


def decoders(out, **options):
    """Samples of a PixelCNN, a convolutional VAE and PixelVAE (figure 2).

    Of comparable size. The paper finds sharp textures without global meaning in the
    first, blur in the second, and in PixelVAE neither.
    """
    variants = {
        "PixelCNN": Variant(
            {"latent_size": 0, "num_layers": 8, "filters": 32},
            paper={"mnist_static": "GatedPixelCNN 80.1"},
        ),
        "VAE": Variant({"num_layers": 0}, paper={"mnist_static": "-ELBO 87.4"}),
        "PixelVAE": Variant(
            {"num_layers": 4}, paper={"mnist_static": "GatedPixelVAE, -ELBO 80.08"}
        ),
    }
    options = _BUDGET | options
    return compare(
        _ENTRY,
        variants,
        title="PixelVAE decoders",
        out=out,
        arguments=_SIZE,
        recipe=_recipe(options["dataset"], options["epochs"]),
        columns={"receptive field": receptive_field},
        samples=True,
        **options,
    )


def _recipe(dataset, epochs):
    """What differs in a recipe for runs of so many epochs."""
    return short_recipe(
        dataset, epochs, batch_size=32, kl_warmup=0.6, ema_momentum=0.998
    )
