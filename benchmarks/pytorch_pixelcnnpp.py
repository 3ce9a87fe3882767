"""PixelCNN++ written plainly in PyTorch; see `pytorch_networks.py`."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

NUM_LEVELS = 3  # resolutions


def concat_elu(features):
    """Twice the channels."""
    return F.elu(torch.cat([features, -features], dim=1))


def pointwise(inputs, outputs):
    """Weight-normalised 1x1 convolution."""
    return weight_norm(nn.Conv2d(inputs, outputs, 1))


def shifted_conv(inputs, outputs, size, stream, stride=1):
    """Weight-normalised convolution that sees no row below and, right, no column."""
    rows, columns = size
    right = columns // 2 if stream == "down" else 0
    layer = nn.Conv2d(inputs, outputs, size, stride)
    padding = (columns - 1 - right, right, rows - 1, 0)
    return nn.Sequential(nn.ZeroPad2d(padding), weight_norm(layer))


KERNELS = {"down": (2, 3), "down_right": (2, 2)}


class Doubling(nn.Module):
    """Transposed convolution of a stream to twice the size."""

    def __init__(self, filters, stream):
        super().__init__()
        layer = nn.ConvTranspose2d(filters, filters, KERNELS[stream], 2)
        self.layer = weight_norm(layer, dim=1)
        self.extra = KERNELS[stream][1] - 2

    def forward(self, features):
        return self.layer(features)[..., self.extra :]


class GatedResnet(nn.Module):
    """`x + b sigmoid(c)` for the halves b, c of two convolutions' outputs."""

    def __init__(self, filters, stream, skip_width, dropout):
        super().__init__()
        size = KERNELS[stream]
        self.first = shifted_conv(2 * filters, filters, size, stream)
        self.skip = pointwise(2 * skip_width, filters) if skip_width else None
        self.dropout = nn.Dropout(dropout)
        self.second = shifted_conv(2 * filters, 2 * filters, size, stream)

    def forward(self, inputs, skip=None):
        features = self.first(concat_elu(inputs))
        if skip is not None:
            features = features + self.skip(concat_elu(skip))
        features = self.second(self.dropout(concat_elu(features)))
        values, gates = features.chunk(2, dim=1)
        return inputs + values * torch.sigmoid(gates)


class Stream(nn.Module):
    """The layers of one stream: on the way there, on the way back, between sizes."""

    def __init__(self, stream, filters, num_resnets, dropout, up_width, down_width):
        super().__init__()

        def resnets(count, skip_width):
            blocks = (
                GatedResnet(filters, stream, skip_width, dropout) for _ in range(count)
            )
            return nn.ModuleList(blocks)

        steps = range(NUM_LEVELS - 1)
        self.up = nn.ModuleList(
            resnets(num_resnets, up_width) for _ in range(NUM_LEVELS)
        )
        self.down = nn.ModuleList(
            resnets(num_resnets + (level > 0), down_width)
            for level in range(NUM_LEVELS)
        )
        self.shrink = nn.ModuleList(
            shifted_conv(filters, filters, KERNELS[stream], stream, 2) for _ in steps
        )
        self.grow = nn.ModuleList(Doubling(filters, stream) for _ in steps)


def mixture_loss(outputs, images, num_components):
    """Nats an image, `[batch]`, under a mixture of rounded logistics a pixel.

    The channels of a pixel share a component, and a channel's location is linear in the
    channels before it.
    """
    channels = images.shape[1]
    scaled = images.float() * (2 / 255) - 1
    parts = outputs.float().unflatten(1, (-1, num_components))
    pairs = channels * (channels - 1) // 2
    logits, locs, log_scales, coefficients = parts.split(
        (1, channels, channels, pairs), dim=1
    )
    coefficients = coefficients.tanh().unbind(1)
    joint = logits[:, 0].log_softmax(1)
    for channel in range(channels):
        loc = locs[:, channel]
        first = channel * (channel - 1) // 2
        for before in range(channel):
            loc = loc + coefficients[first + before] * scaled[:, before, None]
        inverse = torch.exp(-log_scales[:, channel].clamp(min=-7))
        value = scaled[:, channel, None]
        log_below = F.logsigmoid((value - loc + 1 / 255) * inverse)
        log_above = F.logsigmoid((loc - value + 1 / 255) * inverse)
        width = torch.log(-torch.expm1(inverse * (-2 / 255)))
        nats = torch.where(value > 0.999, log_above, log_below + log_above + width)
        joint = joint + torch.where(value < -0.999, log_below, nats)
    return -joint.logsumexp(1).sum((1, 2))


class PixelCNNPP(nn.Module):
    """Two streams go down to a quarter of the size and back, with skips across."""

    def __init__(
        self,
        *,
        image_shape,
        filters=160,
        num_resnets=5,
        num_components=10,
        dropout=0.5,
    ):
        super().__init__()
        channels = image_shape[2]
        self.num_components = num_components
        options = filters, num_resnets, dropout
        padded = channels + 1
        self.rows_above = shifted_conv(padded, filters, (2, 3), "down")
        self.row_above = shifted_conv(padded, filters, (1, 3), "down")
        self.column_left = shifted_conv(padded, filters, (2, 1), "down_right")
        self.rows = Stream("down", *options, 0, filters)
        self.pixels = Stream("down_right", *options, filters, 2 * filters)
        pairs = channels * (channels - 1) // 2
        self.outputs = pointwise(filters, num_components * (1 + 2 * channels + pairs))

    def forward(self, images):
        values = images.float() * (2 / 255) - 1
        values = torch.cat([values, torch.ones_like(values[:, :1])], dim=1)
        down = F.pad(self.rows_above(values)[:, :, :-1], (0, 0, 1, 0))
        right = F.pad(self.row_above(values)[:, :, :-1], (0, 0, 1, 0))
        right = right + F.pad(self.column_left(values)[..., :-1], (1, 0))
        rows, pixels = self.rows, self.pixels
        nodes = [(down, right)]
        for level in range(NUM_LEVELS):
            for block, other in zip(rows.up[level], pixels.up[level], strict=True):
                down = block(down)
                right = other(right, down)
                nodes.append((down, right))
            if level < NUM_LEVELS - 1:
                down, right = rows.shrink[level](down), pixels.shrink[level](right)
                nodes.append((down, right))
        nodes.pop()
        for level in range(NUM_LEVELS):
            for block, other in zip(rows.down[level], pixels.down[level], strict=True):
                skip_down, skip_right = nodes.pop()
                down = block(down, skip_down)
                right = other(right, torch.cat([down, skip_right], dim=1))
            if level < NUM_LEVELS - 1:
                down, right = rows.grow[level](down), pixels.grow[level](right)
        outputs = self.outputs(F.elu(right))
        return mixture_loss(outputs, images, self.num_components)
