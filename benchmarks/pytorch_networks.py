"""The networks of zoo entries, written plainly in PyTorch.

`PixelVAE`, `VLAE`, `FAME` and `PixelCNNPP` take the arguments of their entries and have
the variables of vaezoo's models of the same names; `Masked` is the masked PixelCNN of
the sampling goals. Called with uint8 images `[batch, channels, height, width]`, each
gives their negative ELBO in nats, `[batch]`.

A masked kernel is a product with its mask. Halving and doubling pad on both sides,
where vaezoo pads below and to the right: the sizes and the work are the same.
"""

import functools

import torch
from pytorch_pixelcnnpp import PixelCNNPP as PixelCNNPP
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import register_parametrization


class Mask(nn.Module):
    """Parametrization of a kernel by its product with a mask, normalised on request.

    PyTorch's `weight_norm` divides 0 by 0 where a unit sees nothing, as MADE's first.
    """

    def __init__(self, weight, mask, *, normalized):
        super().__init__()
        self.register_buffer("mask", mask)
        self.axes = tuple(range(1, mask.dim()))
        norm = (weight * mask).detach().norm(2, dim=self.axes, keepdim=True)
        self.gain = nn.Parameter(norm) if normalized else None

    def forward(self, weight):
        weight = weight * self.mask
        if self.gain is None:
            return weight
        return self.gain * F.normalize(weight, dim=self.axes, eps=1e-6)


def masked(layer, mask, *, normalized=True):
    """Put a mask on a layer's kernel."""
    parametrization = Mask(layer.weight, mask, normalized=normalized)
    return register_parametrization(layer, "weight", parametrization)


def conv(inputs, outputs, size=3, **options):
    """Weight-normalised convolution that keeps the size, or divides it by `stride`."""
    return weight_norm(nn.Conv2d(inputs, outputs, size, padding=size // 2, **options))


def dense(inputs, outputs):
    """Weight-normalised dense layer."""
    return weight_norm(nn.Linear(inputs, outputs))


def doubling(inputs, outputs, side, size=3, **options):
    """Transposed convolution to `side` rows and columns, from half of them."""
    padding = {"padding": size // 2, "output_padding": 1 - side % 2}
    return nn.ConvTranspose2d(inputs, outputs, size, 2, **padding, **options)


def halvings(side, count):
    """`side`, and what it is halved to, rounded up, `count` times."""
    sides = [side]
    for _ in range(count):
        sides.append(-(-sides[-1] // 2))
    return sides


def causal_conv(
    inputs, outputs, size, kind, *, num_colours=1, num_maps=0, normalized=True
):
    """Masked convolution of type A or B; the last `num_maps` inputs are not masked."""
    height, width = (size, size) if isinstance(size, int) else size
    mask = torch.ones(outputs, inputs + num_maps, height, width)
    colour_in, colour_out = (torch.arange(n) % num_colours for n in (inputs, outputs))
    visible = (torch.lt if kind == "A" else torch.le)(colour_in, colour_out[:, None])
    mask[:, :inputs, height // 2, width // 2] = visible.float()
    mask[:, :inputs, height // 2, width // 2 + 1 :] = 0
    mask[:, :inputs, height // 2 + 1 :] = 0
    layer = nn.Conv2d(
        inputs + num_maps, outputs, (height, width), padding=(height // 2, width // 2)
    )
    return masked(layer, mask, normalized=normalized)


class Residual(nn.Module):
    """`x + f(x)`, for layers that each come after the activation."""

    def __init__(self, activation, *layers):
        super().__init__()
        self.layers = after(activation, *layers)

    def forward(self, features):
        return features + self.layers(features)


def after(activation, *layers):
    """The layers in order, the activation before each."""
    return nn.Sequential(*(part for layer in layers for part in (activation, layer)))


class PixelCNN(nn.Module):
    """A type-A convolution, residual type-B ones, 1x1 convolutions.

    Arguments as of `vaezoo.decoders.pixelcnn.PixelCNN`; the type-B kernels are 3x3.
    """

    def __init__(
        self,
        *,
        filters,
        num_layers,
        num_colours=1,
        num_outputs=1,
        first_kernel_size=3,
        head_filters=(),
        num_maps=0,
        activation=None,
        tied=False,
        pointwise_after=(),
        block_size=1,
        normalized=True,
    ):
        super().__init__()
        activation = activation or nn.ReLU()

        def causal(inputs, outputs, size, kind="B", **maps):
            options = {"num_colours": num_colours, "normalized": normalized}
            return causal_conv(inputs, outputs, size, kind, **options, **maps)

        self.first = causal(
            num_colours, filters, first_kernel_size, "A", num_maps=num_maps
        )
        layers = [causal(filters, filters, 3) for _ in range(num_layers - 1)]
        if tied:
            for layer in layers[1:]:
                shared = layers[0].parametrizations.weight.original
                layer.parametrizations.weight.original = shared
        blocks = []
        for start in range(0, num_layers - 1, block_size):
            end = start + block_size
            blocks.append(Residual(activation, *layers[start:end]))
            for _ in range(2 if end + 1 in pointwise_after else 0):
                pair = [causal(filters, filters, 1) for _ in range(2)]
                blocks.append(Residual(activation, *pair))
        self.blocks = nn.Sequential(*blocks)
        widths = (filters, *head_filters, num_outputs)
        pairs = zip(widths, widths[1:], strict=False)
        self.head = after(activation, *(causal(*pair, 1) for pair in pairs))

    def forward(self, images, maps=None):
        inputs = images if maps is None else torch.cat([images, maps], dim=1)
        return self.head(self.blocks(self.first(inputs)))


def gate(features):
    """`tanh(a) sigmoid(b)` for the halves a, b of the channels."""
    a, b = features.chunk(2, dim=1)
    return torch.tanh(a) * torch.sigmoid(b)


class GatedBlock(nn.Module):
    """A layer of the Gated PixelCNN: its vertical and its horizontal stack."""

    def __init__(self, inputs, filters, size, kind, code_size):
        super().__init__()
        mask = torch.ones(2 * filters, inputs, size, size)
        mask[:, :, size // 2 + 1 :] = 0
        layer = nn.Conv2d(inputs, 2 * filters, size, padding=size // 2)
        self.vertical = masked(layer, mask)
        self.horizontal = causal_conv(inputs, 2 * filters, (1, size), kind)
        self.link = conv(2 * filters, 2 * filters, 1)
        self.project = conv(filters, filters, 1)
        self.vertical_code = dense(code_size, 2 * filters)
        self.horizontal_code = dense(code_size, 2 * filters)
        self.is_residual = kind == "B"

    def forward(self, vertical, horizontal, code):
        above = self.vertical(vertical)
        shifted = F.pad(above[:, :, :-1], (0, 0, 1, 0))
        row = self.horizontal(horizontal) + self.link(shifted)
        above = above + self.vertical_code(code)[:, :, None, None]
        row = row + self.horizontal_code(code)[:, :, None, None]
        outputs = self.project(gate(row))
        return gate(above), outputs + horizontal if self.is_residual else outputs


class GatedPixelCNN(nn.Module):
    """Gated PixelCNN of binary images with a code in every gate."""

    def __init__(self, num_layers, filters, code_size):
        super().__init__()
        plan = [(1, filters, 7, "A")] + [(filters, filters, 5, "B")] * (num_layers - 1)
        self.blocks = nn.ModuleList(GatedBlock(*layer, code_size) for layer in plan)
        self.head = nn.ModuleList(conv(filters, 2 * filters, 1) for _ in range(2))
        self.code = nn.ModuleList(dense(code_size, 2 * filters) for _ in range(2))
        self.outputs = conv(filters, 1, 1)

    def forward(self, images, code):
        vertical = horizontal = images
        for block in self.blocks:
            vertical, horizontal = block(vertical, horizontal, code)
        for layer, term in zip(self.head, self.code, strict=True):
            horizontal = gate(layer(horizontal) + term(code)[:, :, None, None])
        return self.outputs(horizontal)


class MADE(nn.Module):
    """Masked dense network whose output `i` depends on the inputs before `i`."""

    def __init__(self, size, hidden_sizes):
        super().__init__()
        degrees = [torch.arange(size) + 1]
        degrees += [1 + torch.arange(width) % (size - 1) for width in hidden_sizes]
        masks = [
            (below <= above[:, None]).float()
            for below, above in zip(degrees, degrees[1:], strict=False)
        ]
        masks.append((degrees[-1] < degrees[0][:, None]).float())
        first, *rest = (
            masked(nn.Linear(*reversed(mask.shape)), mask) for mask in masks
        )
        self.layers = nn.Sequential(first, after(nn.ReLU(), *rest))

    def forward(self, inputs):
        return self.layers(inputs)


class ResidualBlock(nn.Module):
    """`elu(shortcut + conv(elu(conv(x))))`; a resizing one has a shortcut of its own.

    Args:
        inputs, outputs: int. Channels.
        resize: function from `(inputs, outputs)` to the resizing layer, or `None`.
    """

    def __init__(self, inputs, outputs, resize=None):
        super().__init__()
        self.inner = (resize or conv)(inputs, outputs)
        self.outer = conv(outputs, outputs)
        self.shortcut = resize(inputs, outputs) if resize else nn.Identity()

    def forward(self, features):
        outputs = self.outer(F.elu(self.inner(features)))
        return F.elu(self.shortcut(features) + outputs)


def normal(loc, scale):
    """Diagonal Gaussian in float32."""
    return Normal(loc.float(), scale.float(), validate_args=False)


def standard_normal():
    """`N(0, 1)`, of any shape by broadcasting."""
    return normal(torch.tensor(0.0), torch.tensor(1.0))


def normal_of(parameters):
    """Diagonal Gaussian of location and log scale, side by side."""
    loc, log_scale = parameters.float().chunk(2, dim=1)
    return normal(loc, log_scale.clamp(-10, 10).exp())


def total(values):
    """Sum over all axes but the first."""
    return values.flatten(1).sum(1)


def bernoulli_loss(logits, images):
    """Nats an image, `[batch]`, of binary images given their pixels' logits."""
    return total(
        F.binary_cross_entropy_with_logits(
            logits.float(), images.float(), reduction="none"
        )
    )


def categorical_loss(logits, images):
    """Nats an image, `[batch]`, of images given the logits of their 256 levels."""
    logits = logits.float().unflatten(1, (256, -1))
    return total(F.cross_entropy(logits, images.long(), reduction="none"))


class Masked(nn.Module):
    """The masked PixelCNN of the sampling goals, without latents."""

    def __init__(self):
        super().__init__()
        self.pixelcnn = PixelCNN(filters=64, num_layers=8)

    def forward(self, images):
        return bernoulli_loss(self.pixelcnn(images.float()), images)


class PixelVAE(nn.Module):
    """PixelVAE without upsampling: the code enters the gates of a Gated PixelCNN."""

    def __init__(self, *, image_shape, latent_size, num_layers, filters, upsample):
        super().__init__()
        if upsample:
            raise NotImplementedError("PixelVAE is written here without upsampling.")
        channels = image_shape[2]
        layers = []
        for width, stride in zip(
            (32, 32, 32, 64, 64, 64, 64, 64), (1, 2, 1, 2, 1, 2, 1, 1), strict=True
        ):
            layers += [conv(channels, width, stride=stride), nn.ReLU()]
            channels = width
        size = channels * halvings(image_shape[0], 3)[-1] ** 2
        self.encoder = nn.Sequential(
            *layers, nn.Flatten(), dense(size, 2 * latent_size)
        )
        self.decoder = GatedPixelCNN(num_layers, filters, latent_size)

    def forward(self, images):
        posterior = normal_of(self.encoder(images.float()))
        prior = standard_normal()
        logits = self.decoder(images.float(), posterior.rsample())
        kl = total(kl_divergence(posterior, prior))
        return bernoulli_loss(logits, images) + kl


class VLAE(nn.Module):
    """VLAE: maps of the code for a small window, an autoregressive flow as prior."""

    def __init__(self, *, image_shape, latent_size=64):
        super().__init__()
        sides = halvings(image_shape[0], 3)
        size = 32 * sides[3] ** 2

        def down(inputs, outputs):
            return conv(inputs, outputs, stride=2)

        def up_to(side):
            return lambda inputs, outputs: weight_norm(
                doubling(inputs, outputs, side), dim=1
            )

        self.encoder = nn.Sequential(
            ResidualBlock(image_shape[2], 16, down),
            ResidualBlock(16, 16),
            ResidualBlock(16, 32, down),
            ResidualBlock(32, 32),
            ResidualBlock(32, 32, down),
            nn.Flatten(),
            dense(size, 450),
            nn.ELU(),
            dense(450, 2 * latent_size),
        )
        self.decoder = nn.Sequential(
            dense(latent_size, 450),
            nn.ELU(),
            dense(450, size),
            nn.ELU(),
            nn.Unflatten(1, (32, sides[3], sides[3])),
            ResidualBlock(32, 32, up_to(sides[2])),
            ResidualBlock(32, 32),
            ResidualBlock(32, 32, up_to(sides[1])),
            ResidualBlock(32, 32),
            ResidualBlock(32, 16, up_to(sides[0])),
            conv(16, 4),
        )
        self.pixelcnn = PixelCNN(
            filters=12,
            num_layers=6,
            num_maps=4,
            activation=nn.ELU(),
            tied=True,
            pointwise_after=(2, 4),
        )
        self.flow = nn.ModuleList(MADE(latent_size, (640, 640)) for _ in range(4))

    def forward(self, images):
        values = images.float()
        posterior = normal_of(self.encoder(values - 0.5))
        code = noise = posterior.rsample()
        for step, network in enumerate(self.flow):
            noise = noise.flip(1) if step else noise
            noise = noise - network(noise)
        prior = standard_normal()
        # The flow only shifts: its log-determinant is 0.
        kl = total(posterior.log_prob(code) - prior.log_prob(noise))
        logits = self.pixelcnn(values, self.decoder(code))
        return bernoulli_loss(logits, images) + kl


def batch_norm(layer, norm):
    """The layer, batch normalisation with vaezoo's constants, ReLU."""
    return nn.Sequential(layer, norm(eps=1e-3, momentum=0.01), nn.ReLU(inplace=True))


def batch_norm_conv(inputs, outputs, size=3, stride=1):
    """`conv` with batch normalisation in place of weight normalisation."""
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    return batch_norm(layer, functools.partial(nn.BatchNorm2d, outputs))


def batch_norm_doubling(inputs, outputs, side, size=3):
    """`doubling` with batch normalisation."""
    layer = doubling(inputs, outputs, side, size, bias=False)
    return batch_norm(layer, functools.partial(nn.BatchNorm2d, outputs))


def batch_norm_dense(inputs, filters, side):
    """Feature maps of a vector: a dense layer with batch normalisation, reshaped."""
    size = filters * side**2
    layer = nn.Linear(inputs, size, bias=False)
    return nn.Sequential(
        batch_norm(layer, functools.partial(nn.BatchNorm1d, size)),
        nn.Unflatten(1, (filters, side, side)),
    )


def flat_dense(filters, side, outputs):
    """Dense layer on flattened feature maps."""
    return nn.Sequential(nn.Flatten(), nn.Linear(filters * side**2, outputs))


def spatial_levels(channels, sides):
    """The ladder of natural images, from z1 to z5: lists of layers by their role."""
    latents, widths = (8, 16, 16, 16, 64), (96, 192, 192, 192, 192)
    for index, (latent, width) in enumerate(zip(latents, widths, strict=True)):
        posterior = nn.Conv2d(width, 2 * latent, 3, padding=1)
        first = batch_norm_doubling(latent, width, sides[index])
        if index == 4:
            posterior = flat_dense(width, sides[5], 2 * latent)
            first = nn.Sequential(
                batch_norm_dense(latent, width, sides[5]),
                batch_norm_doubling(width, width, sides[index]),
            )
        level = {
            "up": nn.Sequential(
                batch_norm_conv(channels, width),
                batch_norm_conv(width, width),
                batch_norm_conv(width, width, stride=2),
            ),
            "posterior": posterior,
            "down": nn.Sequential(
                first, batch_norm_conv(width, width), batch_norm_conv(width, width)
            ),
        }
        if index:
            level["prior"] = nn.Conv2d(width, 2 * latents[index - 1], 3, padding=1)
        yield nn.ModuleDict(level)
        channels = width


def dense_levels(channels, sides):
    """The ladder of grey images, from z1 to z5."""
    latents, width = (64, 32, 16, 8, 4), 64
    for index, latent in enumerate(latents):
        narrow, size = (width, 3) if index else (width // 2, 5)
        above, side = sides[index + 1], sides[index]
        level = {
            "up": nn.Sequential(
                batch_norm_conv(channels, narrow, size, stride=2),
                batch_norm_conv(narrow, width),
            ),
            "posterior": flat_dense(width, above, 2 * latent),
            "down": nn.Sequential(
                batch_norm_dense(latent, width, above),
                batch_norm_conv(width, width),
                batch_norm_doubling(width, narrow, side, size),
            ),
        }
        if index:
            level["prior"] = flat_dense(narrow, side, 2 * latents[index - 1])
        yield nn.ModuleDict(level)
        channels = width


def softplus_normal_of(parameters):
    """Diagonal Gaussian of location and softplus parameter of the scale."""
    loc, scale = parameters.float().chunk(2, dim=1)
    return normal(loc, F.softplus(scale) + 1e-4)


def merge(posterior, prior):
    """The product of two diagonal Gaussians, normalised."""
    weight = prior.variance / (prior.variance + posterior.variance)
    loc = torch.lerp(prior.loc, posterior.loc, weight)
    return normal(loc, (weight * posterior.variance).sqrt())


class FAME(nn.Module):
    """FAME: a ladder of five latents, the PixelCNN on image and maps of the lowest."""

    def __init__(self, *, image_shape, levels=256, spatial=True):
        super().__init__()
        self.is_binary = levels == 2
        height, _, channels = image_shape
        build = spatial_levels if spatial else dense_levels
        self.ladder = nn.ModuleList(build(channels, halvings(height, 5)))
        self.pixelcnn = PixelCNN(
            num_colours=channels,
            num_outputs=channels if self.is_binary else channels * levels,
            filters=64,
            num_layers=9,
            block_size=2,
            first_kernel_size=7,
            head_filters=(64, 64),
            num_maps=96 if spatial else 32,
            normalized=False,
        )

    def forward(self, images):
        values = images.float()
        if not self.is_binary:
            values = values * (2 / 255) - 1
        features, likelihoods = values, []
        for level in self.ladder:
            features = level["up"](features)
            likelihoods.append(softplus_normal_of(level["posterior"](features)))

        posterior = likelihoods.pop()
        prior = standard_normal()
        kl = total(kl_divergence(posterior, prior))
        for level in reversed(self.ladder[1:]):
            prior = softplus_normal_of(
                level["prior"](level["down"](posterior.rsample()))
            )
            posterior = merge(likelihoods.pop(), prior)
            kl = kl + total(kl_divergence(posterior, prior))
        maps = self.ladder[0]["down"](posterior.rsample())
        loss = bernoulli_loss if self.is_binary else categorical_loss
        return loss(self.pixelcnn(values, maps), images) + kl
