"""PixelCNN++ unrolled for sampling: rows of one stream, pixels of the other.

The stream of rows sees nothing of the current row, so all of it is computed once a row.
The stream of pixels sees what is to the left, never the pixel itself, so all of it is
computed before the pixel is drawn. A level of half or a quarter of the image's size is
computed at every second or fourth row and column, under `tf.cond`, and held between.
"""

import tensorflow as tf

from vaezoo.decoders.pixelcnnpp_terms import (
    Level,
    block_terms,
    by_level,
    gate,
    map_terms,
    parts_of,
    product,
    shifted,
    two_columns,
)
from vaezoo.decoders.scan import Scanner
from vaezoo.layers.shifted import concat_elu

_ABOVE = 0  # of the rows of a kernel of 2x2
_LEFT, _OWN = 0, 1  # of its columns
_CONVS = "first", "second"  # of a block


class PixelCNNPPScanner(Scanner):
    """Row-cached PixelCNN++; see `vaezoo.decoders.scan` for the interface.

    Args:
        network: a built `vaezoo.decoders.pixelcnnpp.PixelCNNPPNetwork`.
        height, width: ints, the image's.
        maps, code, skips, injections: what it is conditioned on, as of the network's
            call.
    """

    def __init__(self, network, height, width, maps, code, skips, injections):
        network.check_size(height, width)
        self.height, self.width = height, width
        self.dtype = network.compute_dtype
        self.filters = network.filters
        self.strided = network.strided
        # With the ones.
        self.num_channels = network.rows_above.direction.shape[2] - network.num_maps
        self.levels = []
        rows, pixels = network.rows, network.pixels
        self.num_levels = len(rows.up)
        for level in range(self.num_levels):
            back = self.num_levels - 1 - level
            self.levels.append(
                Level(
                    [*rows.up[level], *rows.down[back]],
                    [*pixels.up[level], *pixels.down[back]],
                    num_up=len(rows.up[level]),
                    step=2**level if network.strided else 1,
                )
            )
        self.rows_above = self._first(network.rows_above)
        self.row_above = self._first(network.row_above)
        kernel, bias = self._first(network.column_left)
        self.column_left = kernel[_ABOVE, 0], kernel[1, 0], bias
        self.maps = None if maps is None else map_terms(network, maps)
        self.outputs = self._affine(network.outputs)
        grow = list(reversed(range(self.num_levels - 1)))  # of the finer level
        self.row_shrink = [self._affine(layer) for layer in rows.shrink]
        self.row_grow = [self._affine(rows.grow[index]) for index in grow]
        self.pixel_shrink = []
        for kernel, bias in map(self._affine, pixels.shrink):
            taps = kernel[_ABOVE], kernel[1, _LEFT], kernel[1, _OWN]
            self.pixel_shrink.append((*taps, bias))
        self.pixel_grow = [self._affine(pixels.grow[index]) for index in grow]
        self.row_blocks = [self._blocks(level.rows, code) for level in self.levels]
        self.pixel_blocks = [self._blocks(level.pixels, code) for level in self.levels]
        # Of all blocks of a level at once: taps on the row above, and to the left.
        self.above = [self._taps(blocks, _ABOVE) for blocks in self.pixel_blocks]
        self.left = [self._taps(blocks, (1, _LEFT)) for blocks in self.pixel_blocks]
        # Of each block: its taps on the pixel itself, and what a skip gives to it.
        self.own = [
            [{name: block[name][0][1, _OWN] for name in _CONVS} for block in blocks]
            for blocks in self.pixel_blocks
        ]
        self.skip = [
            [self._parts(block, 2)[1] for block in blocks[level.num_up :]]
            for level, blocks in zip(self.levels, self.pixel_blocks, strict=True)
        ]
        self.has_starts = network.num_skips > 0
        if self.has_starts:
            self.starts = [
                (kernel[: self.filters], kernel[self.filters :], bias)
                for kernel, bias in map(self._affine, network.starts)
            ]
        # What is known everywhere of each level's blocks, and of where the way back
        # starts: of skips and injections.
        self.block_terms = [{} for _ in self.levels]
        self.start_terms = None
        if skips is not None:
            self._add_skips([tf.cast(maps, self.dtype) for maps in skips])
        if injections is not None:
            self._add_injections([tf.cast(maps, self.dtype) for maps in injections])

    def _affine(self, layer):
        return layer.kernel(), tf.cast(layer.bias, self.dtype)

    def _first(self, layer):
        """Kernel of the image and the ones, and bias, of a layer that sees them."""
        kernel, bias = self._affine(layer)
        return kernel[:, :, : self.num_channels], bias

    def _parts(self, block, num_streams):
        return parts_of(block["skip"][0], self.filters, num_streams)

    def _add_terms(self, number, name, terms):
        """Add to what a level's blocks of the stream "rows" or "pixels" get."""
        before = self.block_terms[number].get(name)
        self.block_terms[number][name] = terms if before is None else before + terms

    def _add_skips(self, skips):
        """What the skips' own maps give to the blocks of the way back."""
        start = tf.nn.elu(skips.pop())
        self.start_terms = [  # [height, batch, width, F]
            tf.transpose(product(start, kernel), [1, 0, 2, 3])
            for _, kernel, _ in self.starts
        ]
        for number, level in enumerate(self.levels):
            nodes = skips[: len(level.rows) - level.num_up]
            skips = skips[len(nodes) :]
            maps = [*[None] * level.num_up, *nodes[::-1]]
            for name, blocks, num_streams in (
                ("rows", self.row_blocks[number], 1),
                ("pixels", self.pixel_blocks[number], 2),
            ):
                kernels = [
                    None if part is None else self._parts(block, num_streams)[-1]
                    for part, block in zip(maps, blocks, strict=True)
                ]
                self._add_terms(number, name, block_terms(maps, kernels, concat_elu))

    def _add_injections(self, injections):
        """What the injections give to all blocks."""
        parts = by_level(injections, self.levels)
        for number, (level, maps) in enumerate(zip(self.levels, parts, strict=True)):
            for name, blocks in (("rows", level.rows), ("pixels", level.pixels)):
                kernels = [
                    tf.cast(block.injection.kernel, self.dtype) for block in blocks
                ]
                self._add_terms(number, name, block_terms(maps, kernels, tf.nn.elu))

    def _blocks(self, blocks, code):
        """Kernels and biases of a list of `GatedResnet`."""
        unrolled = []
        for block in blocks:
            kernel, bias = self._affine(block.second)
            if code is not None:
                bias = block.code(code) + bias  # [batch, 2 filters]
            unrolled.append(
                {
                    "first": self._affine(block.first),
                    "second": (kernel, bias),
                    "skip": self._affine(block.skip) if block.skip.built else None,
                }
            )
        return unrolled

    def _taps(self, blocks, place):
        """Taps of all first, and of all second layers: `[blocks, ..., c, f]`."""
        return [
            tf.stack([block[name][0][place] for block in blocks]) for name in _CONVS
        ]

    def _width(self, level):
        return self.width // self.levels[level].step

    # The rows: one row of the row stream, and what it and the rows above give the
    # pixels.

    def first_row(self, batch):
        zeros = {"x": tf.zeros([batch, 2, self.width, self.num_channels], self.dtype)}
        for level in range(self.num_levels):
            width, num = self._width(level), len(self.levels[level].rows)
            wide = [num, batch, width, 2 * self.filters]
            for name in ("row_first", "row_second", "first", "second"):
                zeros[f"{name}_{level}"] = tf.zeros(wide, self.dtype)
            one = tf.zeros([batch, width, self.filters], self.dtype)
            full = tf.zeros([batch, self.width, self.filters], self.dtype)
            zeros |= {f"row_node_{level}": one, f"node_{level}": one}
            zeros |= {f"row_out_{level}": one, f"row_out_above_{level}": one}
            zeros[f"out_{level}"] = full
            # What is added up for the pixels of the row to come, a column first.
            zeros[f"terms_first_{level}"] = tf.zeros(
                [width, num, batch, self.filters], self.dtype
            )
            zeros[f"terms_second_{level}"] = tf.zeros(
                [width, num, batch, 2 * self.filters], self.dtype
            )
            zeros[f"terms_shrink_{level}"] = tf.zeros(
                [width, batch, self.filters], self.dtype
            )
        zeros["start"] = tf.zeros([self.width, batch, self.filters], self.dtype)
        return self._row(zeros, 0)

    def next_row(self, context, row, xs, activations):
        """The context of row `row + 1`.

        Args:
            xs: `[batch, width, channels]`, the finished row.
            activations: of each level `[width, blocks, batch, 2 filters]` twice, then
                a node and an output `[width, batch, filters]`.
        """
        context = dict(context)
        ones = tf.ones_like(xs[..., :1])
        x = tf.concat([xs, ones], -1)
        context["x"] = tf.stack([context["x"][:, 1], x], axis=1)
        for level in range(self.num_levels):
            first, second, node, out = activations[4 * level : 4 * level + 4]
            step = self.levels[level].step
            finished = {
                f"first_{level}": tf.transpose(first[::step], [1, 2, 0, 3]),
                f"second_{level}": tf.transpose(second[::step], [1, 2, 0, 3]),
                f"node_{level}": tf.transpose(node[::step], [1, 0, 2]),
            }
            is_new = tf.equal(row % step, 0)
            for name, value in finished.items():
                context[name] = tf.where(is_new, value, context[name])
            # Of a row that the next finer level has.
            is_new = tf.equal(row % self.levels[max(level - 1, 0)].step, 0)
            context[f"out_{level}"] = tf.where(
                is_new, tf.transpose(out, [1, 0, 2]), context[f"out_{level}"]
            )
        return self._row(context, row + 1)

    def _row(self, context, row):
        """The row stream at `row`, and the terms of its pixels."""
        context = dict(context)
        # The row after the last one is asked for, and not used.
        row = tf.minimum(row, self.height - 1)
        kernel, bias = self.rows_above
        is_below = tf.cast(row > 0, self.dtype)  # the shifts bring zeros to row 0
        x = context["x"]
        down = (self._window(x, kernel) + bias) * is_below
        kernel, bias = self.row_above
        start = (self._window(x[:, 1:], kernel) + bias) * is_below
        start += shifted(product(x[:, 1], self.column_left[0]))
        if self.maps is not None:
            down += self.maps[0][row]
            start += self.maps[1][row]
        context["start"] = tf.transpose(start, [1, 0, 2])
        _, context = self._row_level(0, down, context, row)
        return context

    def _window(self, rows, kernel):
        """A convolution of a few rows into one, zeros to the left and right."""
        columns = kernel.shape[1] // 2
        padded = tf.pad(rows, [[0, 0], [0, 0], [columns, columns], [0, 0]])
        return tf.nn.conv2d(padded, kernel, strides=1, padding="VALID")[:, 0]

    def _row_level(self, level, features, context, row):
        """The row stream at a level and below it, and what the pixels get of it."""
        context, blocks = dict(context), self.row_blocks[level]
        num_up = self.levels[level].num_up
        inputs = {"first": [], "second": []}
        skips = []  # what the pixel stream's blocks get from this one

        def convolve(index, name, features):
            kernel, bias = blocks[index][name]
            doubled = concat_elu(features)
            inputs[name].append(doubled)
            above = context[f"row_{name}_{level}"][index]
            outputs = self._window(tf.stack([above, doubled], 1), kernel)
            return outputs + (bias if bias.shape.rank == 1 else bias[:, None])

        def block(index, features, skip=None):
            hidden = convolve(index, "first", features)
            if skip is not None:
                kernel, bias = (
                    self._parts(blocks[index], 1)[0],
                    blocks[index]["skip"][1],
                )
                hidden += product(concat_elu(skip), kernel) + bias
            if "rows" in self.block_terms[level]:
                hidden += self.block_terms[level]["rows"][place][index]
            return features + gate(convolve(index, "second", hidden))

        place = row // self.levels[level].step
        nodes = [features]
        for index in range(num_up):
            features = block(index, features)
            nodes.append(features)
            skips.append(features)
        if level < self.num_levels - 1:
            features, context = self._row_below(level, features, context, row)
            context[f"row_node_{level}"] = nodes[-1]
        else:
            features = self._start(0, nodes.pop(), place)
        for index in range(num_up, len(blocks)):
            features = block(index, features, nodes.pop())
            skips.append(features)
        for name, values in inputs.items():
            context[f"row_{name}_{level}"] = tf.stack(values)
        context[f"row_out_above_{level}"] = context[f"row_out_{level}"]
        context[f"row_out_{level}"] = features
        return features, self._terms(level, skips, context, place)

    def _start(self, stream, features, place):
        """Where a stream's way back starts, from the last node of its way there.

        Args:
            stream: 0 for the rows, 1 for the pixels.
            features: `[batch, (width,) F]`.
            place: `row`, or `(row, column)`, of the coarsest level.
        """
        if not self.has_starts:
            return features
        kernel, _, bias = self.starts[stream]
        features = product(tf.nn.elu(features), kernel) + bias
        if self.start_terms is None:
            return features
        row, *column = place if stream else (place,)
        terms = self.start_terms[stream][row]
        return features + (terms[:, column[0]] if column else terms)

    def _row_below(self, level, features, context, row):
        """Down to the next level, where it has such a row, and back."""
        below, above = level + 1, context[f"row_node_{level}"]
        two_rows = tf.pad(
            tf.stack([above, features], 1), [[0, 0], [0, 0], [1, 1], [0, 0]]
        )

        def go_on():
            here = self.here()
            kernel, bias = here.row_shrink[level]
            strides = 2 if self.strided else 1
            coarse = tf.nn.conv2d(two_rows, kernel, strides=strides, padding="VALID")
            return here._row_level(below, coarse[:, 0] + bias, context, row)[1]

        if self.strided:
            is_row = tf.equal(row % self.levels[below].step, 0)
            context = tf.cond(is_row, go_on, lambda: dict(context))
        else:
            context = go_on()
        kernel, bias = self.row_grow[level]
        out = context[f"row_out_{below}"]
        if not self.strided:
            rows = tf.stack([context[f"row_out_above_{below}"], out], 1)
            return self._window(rows, kernel) + bias, context
        kernel = kernel[(row // self.levels[level].step) % 2]  # [3, filters, channels]
        # A column 2C + j - 1 gets the tap j of the coarse column C.
        taps = tf.einsum("bwc,jfc->bwjf", out, kernel)
        right = tf.pad(taps[:, 1:, 0], [[0, 0], [0, 1], [0, 0]])
        pairs = tf.stack([taps[:, :, 1], taps[:, :, 2] + right], axis=2)
        shape = [-1, self._width(level), self.filters]
        return tf.reshape(pairs, shape) + bias, context

    def _terms(self, level, skips, context, place):
        """What the pixels of a row get from the row above and from the row stream."""
        context, blocks = dict(context), self.pixel_blocks[level]
        num_up = self.levels[level].num_up
        first_above, second_above = self.above[level]
        first = two_columns(context[f"first_{level}"], first_above)
        second = two_columns(context[f"second_{level}"], second_above)
        extras, biases = [], []
        for index, (block, skip) in enumerate(zip(blocks, skips, strict=True)):
            kernel, bias = block["skip"]
            if index >= num_up:  # of concat_elu([rows, pixels]): the rows' parts
                kernel = self._parts(block, 2)[0]
            extra = product(concat_elu(skip), kernel)
            extras.append(extra + bias + block["first"][1])
            biases.append(block["second"][1])
        first += tf.stack(extras)
        if "pixels" in self.block_terms[level]:
            first += self.block_terms[level]["pixels"][place]
        bias = tf.stack(biases)  # [blocks, (batch,) 2 filters]
        second += bias[:, :, None] if bias.shape.rank == 3 else bias[:, None, None]
        context[f"terms_first_{level}"] = tf.transpose(first, [2, 0, 1, 3])
        context[f"terms_second_{level}"] = tf.transpose(second, [2, 0, 1, 3])
        if level < self.num_levels - 1:
            kernel, *_, bias = self.pixel_shrink[level]
            above = two_columns(context[f"node_{level}"], kernel) + bias
            context[f"terms_shrink_{level}"] = tf.transpose(above, [1, 0, 2])
        return context

    # The pixels.

    def activation_shapes(self, batch):
        shapes = []
        for level in self.levels:
            wide = [len(level.pixels), batch, 2 * self.filters]
            shapes += [wide, wide, [batch, self.filters], [batch, self.filters]]
        return shapes

    def first_column(self, batch):
        zeros = [tf.zeros(shape, self.dtype) for shape in self.activation_shapes(batch)]
        return [tf.zeros([batch, self.num_channels], self.dtype), zeros]

    def before_pixel(self, context, left, row, column):
        x, activations = left
        _, kernel, bias = self.column_left
        is_right = tf.cast(column > 0, self.dtype)  # the shift brings zeros to column 0
        features = context["start"][column]
        features += (tf.matmul(x, kernel) + bias) * is_right
        features, activations = self._pixel_level(
            0, features, context, activations, row, column
        )
        kernel, bias = self.outputs
        params = tf.matmul(tf.nn.elu(features), kernel) + bias
        return params, activations

    def _pixel_level(self, level, features, context, activations, row, column):
        """The pixel stream at a level and below it, at one position."""
        own_taps, step = self.own[level], self.levels[level].step
        num_up = self.levels[level].num_up
        own, below = activations[4 * level : 4 * level + 4], 4 * level + 4
        place = column // step
        bases = [
            context[f"terms_{name}_{level}"][place] + tf.matmul(left, kernel)
            for name, left, kernel in zip(
                ("first", "second"), own[:2], self.left[level], strict=True
            )
        ]
        first, second = (tf.unstack(base, num=len(own_taps)) for base in bases)
        inputs = {"first": [], "second": []}

        def convolve(index, name, base, features):
            doubled = concat_elu(features)
            inputs[name].append(doubled)
            return base[index] + tf.matmul(doubled, own_taps[index][name])

        def block(index, features, skip=None):
            hidden = convolve(index, "first", first, features)
            if skip is not None:
                kernel = self.skip[level][index - num_up]
                hidden += tf.matmul(concat_elu(skip), kernel)
            return features + gate(convolve(index, "second", second, hidden))

        nodes = [features]
        for index in range(num_up):
            features = block(index, features)
            nodes.append(features)
        node = nodes[-1]
        if level < self.num_levels - 1:
            features, activations = self._pixel_below(
                level, features, context, activations, row, column
            )
        else:
            features = self._start(1, nodes.pop(), (row // step, place))
        for index in range(num_up, len(own_taps)):
            features = block(index, features, nodes.pop())
        own = [*map(tf.stack, inputs.values()), node, features]
        return features, [*activations[: below - 4], *own, *activations[below:]]

    def _pixel_below(self, level, features, context, activations, row, column):
        """Down to the next level, where it has such a position, and back."""
        below, step = level + 1, self.levels[level].step
        left_node, left_out = activations[4 * level + 2], activations[4 * below + 3]
        place = column // step

        def go_on():
            here = self.here()
            _, left_tap, own_tap, _ = here.pixel_shrink[level]
            coarse = context[f"terms_shrink_{level}"][place]
            coarse += tf.matmul(left_node, left_tap) + tf.matmul(features, own_tap)
            state = coarse, context, activations, row, column
            return here._pixel_level(below, *state)[1]

        def hold():
            # On a row between, the output of the row above; else that to the left.
            is_row = tf.equal(row % self.levels[below].step, 0)
            held = tf.where(is_row, left_out, context[f"out_{below}"][:, column])
            return [*activations[: 4 * below + 3], held, *activations[4 * below + 4 :]]

        if self.strided:
            size = self.levels[below].step
            is_place = tf.equal(row % size, 0) & tf.equal(column % size, 0)
            activations = tf.cond(is_place, go_on, hold)
        else:
            activations = go_on()
        out = activations[4 * below + 3]
        kernel, bias = self.pixel_grow[level]
        if self.strided:
            tap = kernel[(row // step) % 2, (column // step) % 2]  # [filters, channels]
            return tf.matmul(out, tap, transpose_b=True) + bias, activations
        above = context[f"out_{below}"]
        before = tf.maximum(column - 1, 0)
        is_right = tf.cast(column > 0, self.dtype)
        grown = tf.matmul(above[:, before] * is_right, kernel[_ABOVE, _LEFT])
        grown += tf.matmul(above[:, column], kernel[_ABOVE, _OWN])
        grown += tf.matmul(left_out, kernel[1, _LEFT])
        return grown + tf.matmul(out, kernel[1, _OWN]) + bias, activations

    def pixel(self, pre, x):
        return pre

    def after_pixel(self, left, activations, x):
        return [tf.concat([x, tf.ones_like(x[:, :1])], -1), activations]
