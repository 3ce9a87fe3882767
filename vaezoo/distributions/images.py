"""Distributions over images and maps, from a head and what gives it its parameters."""

import tensorflow as tf
import tensorflow_probability as tfp

from vaezoo import inference
from vaezoo.decoders import scan as scans
from vaezoo.decoders import wavefront

tfd = tfp.distributions


class _Image(tfd.Distribution):
    """A distribution over uint8 images `[height, width, channels]`."""

    _value_dtype = tf.uint8
    _stateless_noise = staticmethod(tf.random.stateless_uniform)

    def __init__(self, head, image_shape, *, parameters, name):
        self._head = head
        self._image_shape = tuple(image_shape)
        super().__init__(
            dtype=self._value_dtype,
            reparameterization_type=tfd.NOT_REPARAMETERIZED,
            validate_args=False,
            allow_nan_stats=False,
            parameters=parameters,
            name=name,
        )

    @classmethod
    def _parameter_properties(cls, dtype, num_classes=None):
        return {}

    def _event_shape(self):
        return tf.TensorShape(self._image_shape)

    def _event_shape_tensor(self):
        return tf.constant(self._image_shape, tf.int32)

    @property
    def noise_shape(self):
        """Shape of one image's noise: `(height, width, num_uniforms)`."""
        return (*self._image_shape[:2], self._head.num_uniforms)

    def draw(self, uniforms, *, temperature=None, known=None, in_graph=False):
        """The image that `uniforms` are turned into; exact at temperature 1.

        Args:
            uniforms: float32 `[batch, *noise_shape]` in [0, 1).
            temperature: float32 `[batch]`, above 0; 1 where `None`.
            known: `None`, or `(images, mask)`: uint8 `[batch, height, width,
                channels]` and `[batch, height, width, 1]`. Pixels whose mask is 0
                are forced to the image and condition the pixels after them.
            in_graph: bool. Whether to be fast without XLA, which does not compile what
                that takes: along a wavefront, where the network can.

        Returns:
            uint8 `[batch, height, width, channels]`.
        """
        if temperature is None:
            temperature = tf.ones(tf.shape(uniforms)[:1])
        temperature = temperature[:, None]
        draw = self._draw_in_graph if in_graph else self._draw
        return tf.cast(draw(uniforms, temperature, known), self.dtype)

    def _draw_in_graph(self, uniforms, temperature, known):
        return self._draw(uniforms, temperature, known)

    def _sample_n(self, n, seed=None):
        seed = tfp.random.sanitize_seed(seed)
        batch = self._batch_shape_tensor()[0]
        shape = tf.concat([[n], [batch], self.noise_shape], 0)
        noise = tf.ensure_shape(
            self._stateless_noise(shape, seed), [None, None, *self.noise_shape]
        )
        return tf.map_fn(self.draw, noise, fn_output_signature=self.dtype)


class AutoregressiveImage(_Image):
    """`p(x) = prod over pixels i of p(x_i | x_1, ..., x_{i-1})`, in raster order.

    `log_prob` is one pass of the network. `draw`, which `sample` calls, is the
    row-cached scan: `height * width * steps_per_pixel` sequential steps (compile it
    with XLA where it matters). The distribution sampled is the one scored.

    Args:
        network: a PixelCNN, of the modules in `vaezoo.decoders`.
        head: the likelihood head.
        image_shape: `(height, width, channels)`.
        batch_size: int or int tensor. Images in the batch.
        conditioning: dict of the network's keyword arguments, `[batch, ...]` each.
        call_options: dict of further keyword arguments of its teacher-forced pass,
            such as `training` and the `seeds` of dropout.
    """

    def __init__(
        self,
        network,
        head,
        *,
        image_shape,
        batch_size,
        conditioning=None,
        call_options=None,
        name="AutoregressiveImage",
    ):
        parameters = dict(locals())
        self._network = network
        self._conditioning = conditioning or {}
        self._call_options = call_options or {}
        self._batch_size = batch_size
        super().__init__(head, image_shape, parameters=parameters, name=name)

    def _batch_shape(self):
        return tf.TensorShape([tf.get_static_value(self._batch_size)])

    def _batch_shape_tensor(self):
        return tf.reshape(self._batch_size, [1])

    def params(self, images, *, hidden=None):
        """The head's parameters of every pixel, float32 `[batch, h, w, outputs]`.

        Args:
            images: `[batch, height, width, channels]`.
            hidden: bool `[batch]`, or `None`. Images of which the network sees zeros.
        """
        values = self._head.normalize(tf.cast(images, tf.float32))
        if hidden is not None:
            values = tf.where(hidden[:, None, None, None], 0.0, values)
        params = self._network(values, **self._conditioning, **self._call_options)
        return tf.cast(params, tf.float32)

    def _log_prob(self, images, hidden=None):
        images = tf.convert_to_tensor(images)
        log_probs = self._head.log_prob(
            self.params(images, hidden=hidden), tf.cast(images, tf.float32)
        )
        return tf.reduce_sum(log_probs, axis=[-2, -1])

    def _draw(
        self, uniforms, temperature, known, scan=scans.row_cached_scan, **options
    ):
        return scan(
            self._network,
            self._head,
            uniforms,
            temperature=temperature,
            conditioning=self._conditioning,
            known=known,
            **options,
        )

    def _draw_in_graph(self, uniforms, temperature, known):
        if hasattr(self._network, "wavefront"):
            scan = wavefront.wavefront_scan
            return self._draw(uniforms, temperature, known, scan=scan)
        return self._draw(uniforms, temperature, known, in_graph=True)

    def draw_naively(self, uniforms, *, temperature=None, known=None):
        """`draw` by one full network pass a (sub-)pixel, for tests and benchmarks."""
        if temperature is None:
            temperature = tf.ones(tf.shape(uniforms)[:1])
        values = self._draw(
            uniforms, temperature[:, None], known, scan=scans.naive_scan
        )
        return tf.cast(values, self.dtype)


class AutoregressiveMaps(AutoregressiveImage):
    """Float maps `[height, width, channels]`, place by place in raster order.

    As `AutoregressiveImage`, but that its noise is normal. The channels of a place are
    independent given the places before it.

    Args:
        network, batch_size, conditioning: as of `AutoregressiveImage`.
        head: a `vaezoo.distributions.heads.Normal`.
        image_shape: `(height, width, channels)` of the maps.
    """

    _value_dtype = tf.float32
    _stateless_noise = staticmethod(tf.random.stateless_normal)

    def normal(self, values):
        """Each element's normal given the places before it, which have `values`.

        Args:
            values: float32 `[batch, height, width, channels]`.

        Returns:
            A diagonal normal of batch shape `[batch]`: of the conditionals, each on the
            same values, not a distribution of the maps.
        """
        loc, scale = self._head.loc_and_scale(self.params(values))
        return inference.diagonal_normal(loc, scale, event_ndims=3)


class IndependentImage(_Image):
    """`p(x) = prod over pixels i of p(x_i)`: drawn in one go, without a pixel loop.

    Args:
        params: float `[batch, height, width, head.num_outputs]`.
        head: the likelihood head.
        image_shape: `(height, width, channels)`.
    """

    def __init__(self, params, head, *, image_shape, name="IndependentImage"):
        parameters = dict(locals())
        self._params = tf.cast(params, tf.float32)
        super().__init__(head, image_shape, parameters=parameters, name=name)

    def _batch_shape(self):
        return self._params.shape[:1]

    def _batch_shape_tensor(self):
        return tf.shape(self._params)[:1]

    def params(self, images):
        """The head's parameters of every pixel; they do not depend on `images`."""
        return self._params

    def _log_prob(self, images):
        log_probs = self._head.log_prob(self._params, tf.cast(images, tf.float32))
        return tf.reduce_sum(log_probs, axis=[-2, -1])

    def _draw(self, uniforms, temperature, known):
        shape = tf.shape(uniforms)
        pixels = tf.reduce_prod(shape[:3])
        flat = tf.reshape(uniforms, [pixels, uniforms.shape[-1]])
        params = tf.reshape(self._params, [pixels, self._head.num_outputs])
        temperature = tf.repeat(temperature, shape[1] * shape[2], axis=0)
        values = tf.zeros([pixels, self._head.num_channels])
        for step in range(self._head.steps_per_pixel):
            values = self._head.draw(
                params, flat, values=values, step=step, temperature=temperature
            )
        values = tf.reshape(
            values, tf.concat([shape[:3], [self._head.num_channels]], 0)
        )
        if known is not None:
            images, mask = known
            values = tf.where(
                tf.cast(mask, tf.bool), values, tf.cast(images, tf.float32)
            )
        return values
