"""A client of a TensorFlow Serving server that serves an exported model.

    client = vaezoo.Client("localhost:8500", "fame_cifar10")
    images = client.sample(16, seed=0)

Its methods have the arguments and the results of the model's own.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import random
import re
import secrets
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vaezoo import checks, sampling
from vaezoo.typing import Array, Seed

if TYPE_CHECKING:
    import grpc

# Seconds before a request is sent again, at most: they are random. Doubled each time,
# up to the longest.
_FIRST_WAIT = 0.1
_LONGEST_WAIT = 5.0
# A batch refused for another's fault cost the server nothing; to come back before that
# other does is the way past it.
_MERGED_WAIT = 0.01
_MAX_MESSAGE_BYTES = 2**31 - 1
# The graph's limit of rows, and the batching queue's.
_LIMIT = re.compile(r"(?:max_batch_size=|maximum input batch size )(\d+)")
# How TensorFlow words a rule that the graph checks.
_RULE = re.compile(r"assertion failed: \[(.*?)\] \[Received:\] (\[.*?\])", re.DOTALL)
# How the batching queue words that it merged requests of several shapes; ours is right.
_SHAPES = re.compile(r"different tasks have different shapes")
_RANGE = re.compile(r"`(\w+)` must have values in 0\.\.(\d+)")

_NO_EXTRA = "The client needs the 'serving' extra: pip install 'vaezoo[serving]'."

_logger = logging.getLogger(__name__)


class Client:
    """Samples from a served model, and scores, encodes, decodes and completes images.

    The model's shapes are asked of the server at the first call. A call of many rows
    is sent in requests of at most `max_batch_size`, or of the server's own limit, which
    its refusal tells. Until the timeout, a request is sent again while the server is
    away or too busy, and when the server refuses it for a rule that it keeps: it was
    merged with another's that does not. A row's answer is a function of its seed, so
    that changes nothing. The logger `vaezoo.Client` tells of each at level INFO.

    Args:
        address: str, `HOST:PORT` of the server's gRPC port.
        model_name: str, the name that the server gives the model.
        version: int, a version of the model; `None` for the server's choice.
        timeout: float, seconds for each request, its retries included.
        max_batch_size: int. Rows of a request.
        channel: a `grpc.Channel`, such as one with credentials; `None` for an insecure
            one to `address`.

    Raises:
        ImportError: the `serving` extra is not installed.
        ValueError: an argument breaks its rule.
    """

    def __init__(
        self,
        address: str,
        model_name: str,
        *,
        version: int | None = None,
        timeout: float = 60.0,
        max_batch_size: int = 64,
        channel: grpc.Channel | None = None,
    ):
        if importlib.util.find_spec("tensorflow_serving") is None:
            raise ImportError(_NO_EXTRA)  # before TensorFlow, which it would import
        try:
            import grpc
            from tensorflow_serving.apis import prediction_service_pb2_grpc
        except ImportError as error:
            raise ImportError(_NO_EXTRA) from error
        self.address = address
        self.model_name = model_name
        self.version = checks.integer("version", version, minimum=0, optional=True)
        self.timeout = checks.number("timeout", timeout, above=0)
        self.max_batch_size = checks.integer("max_batch_size", max_batch_size)
        if channel is None:
            options = [
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            ]
            channel = grpc.insecure_channel(address, options)
        self._channel = channel
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        self._signatures = None

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_):
        self.close()

    # What the server serves.

    @property
    def signatures(self) -> dict[str, dict[str, tuple[type, tuple[int, ...]]]]:
        """Name of a signature -> name of an input -> `(dtype, shape of a row)`.

        Raises:
            As the methods below.
        """
        if self._signatures is None:
            self._signatures = self._ask_for_signatures()
        return self._signatures

    @property
    def image_shape(self) -> tuple[int, ...]:
        """`(height, width, channels)` of the model's images."""
        return self._inputs("log_likelihood")["images"][1]

    def _ask_for_signatures(self):
        import tensorflow as tf
        from tensorflow_serving.apis import get_model_metadata_pb2

        request = get_model_metadata_pb2.GetModelMetadataRequest(
            metadata_field=["signature_def"]
        )
        self._name_model(request.model_spec)
        answer = self._send(self._stub.GetModelMetadata, request)
        found = get_model_metadata_pb2.SignatureDefMap()
        answer.metadata["signature_def"].Unpack(found)
        return {
            name: {
                key: (
                    tf.as_dtype(info.dtype).as_numpy_dtype,
                    tuple(dim.size for dim in info.tensor_shape.dim[1:]),
                )
                for key, info in signature.inputs.items()
            }
            for name, signature in found.signature_def.items()
        }

    def _inputs(self, signature):
        if signature not in self.signatures:
            served = sorted(set(self.signatures) - {"serving_default"})
            raise ValueError(
                f"The served model must have the signature {signature!r}. Received: "
                f"{self.model_name!r} at {self.address}, which has {served}. A model "
                "without latents has no codes; otherwise export it with this signature."
            )
        return self.signatures[signature]

    # The model's methods.

    def sample(
        self, num: int, *, seed: Seed | None = None, temperature: Array = 1.0
    ) -> npt.NDArray[np.uint8]:
        """Draw images, as `model.sample` does with `jit=False`.

        Args:
            num: int, at least 1.
            seed: int, or int64 `[num]`, one a row; `None` for a fresh one.
            temperature: float above 0, or `[num]`, one a row.

        Returns:
            uint8 `[num, height, width, channels]`.

        Raises:
            ValueError: an argument breaks its rule, here or at the server, or the
                server has no such model or signature.
            ConnectionError: the server is not there.
            TimeoutError: it has not answered in time.
        """
        num = checks.integer("num", num)
        if seed is None:
            seed = secrets.randbits(63)
        inputs = {"temperature": checks.temperatures(temperature, num)}
        return self._predict("sample", inputs, seed)["images"]

    def log_likelihood(
        self, images: Array, *, seed: Seed = 0
    ) -> npt.NDArray[np.float32]:
        """The bound `L_K` of each image in nats, float32 `[n]`.

        K was fixed by the export. Args and errors: as of `sample`; `images` are uint8
        `[n, height, width, channels]`.
        """
        inputs = {"images": self._images("log_likelihood", images)}
        return self._predict("log_likelihood", inputs, seed)["log_likelihood"]

    def encode(
        self, images: Array, *, seed: Seed = 0
    ) -> dict[str, npt.NDArray[np.float32]]:
        """A draw of each image's latents: dict of name to float32 `[n, ...]`."""
        inputs = {"images": self._images("encode", images)}
        return self._predict("encode", inputs, seed)

    def decode(
        self, latents: Mapping[str, Array], *, seed: Seed = 0
    ) -> npt.NDArray[np.uint8]:
        """Draw images of latents, a dict as `encode` gives: uint8 `[n, ...]`."""
        shapes = {name: shape for name, (_, shape) in self._inputs("decode").items()}
        del shapes["seed"]
        inputs = checks.latents(latents, latent_shapes=shapes)
        return self._predict("decode", inputs, seed)["images"]

    def reconstruct(self, images: Array, *, seed: Seed = 0) -> npt.NDArray[np.uint8]:
        """Encode images and draw them again: uint8 `[n, height, width, channels]`."""
        inputs = {"images": self._images("reconstruct", images)}
        return self._predict("reconstruct", inputs, seed)["images"]

    def complete(
        self, images: Array, mask: Array, *, seed: Seed = 0
    ) -> npt.NDArray[np.uint8]:
        """Fill in pixels where `mask` is 1; see `vaezoo.models.vae.VAE.complete`."""
        images = self._images("complete", images)
        mask = checks.mask(mask, image_shape=images.shape[1:], num=len(images))
        inputs = {"images": images, "mask": mask}
        return self._predict("complete", inputs, seed)["images"]

    def _images(self, signature, images):
        """Checked images; how many levels they may have, only the server knows."""
        _, image_shape = self._inputs(signature)["images"]
        return checks.images(images, image_shape=image_shape)

    # Requests.

    def _predict(self, signature, inputs, seed):
        self._inputs(signature)  # is there such a signature?
        num = len(next(iter(inputs.values())))
        inputs = inputs | {"seed": sampling.row_seeds(seed, num)}
        parts, start = [], 0
        while start < num:
            rows = slice(start, start + self.max_batch_size)
            part = {key: value[rows] for key, value in inputs.items()}
            try:
                parts.append(self._request(signature, part))
            except ValueError as error:
                limit = _LIMIT.search(str(error))
                if not limit or int(limit[1]) >= self.max_batch_size:
                    raise
                self.max_batch_size = int(limit[1])
                continue
            start += self.max_batch_size
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def _request(self, signature, inputs):
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest()
        self._name_model(request.model_spec)
        request.model_spec.signature_name = signature
        for key, value in inputs.items():
            request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
        answer = self._send(self._stub.Predict, request, inputs)
        return {key: tf.make_ndarray(value) for key, value in answer.outputs.items()}

    def _name_model(self, spec):
        spec.name = self.model_name
        if self.version is not None:
            spec.version.value = self.version

    def _send(self, method, request, inputs=None):
        import grpc

        deadline = time.monotonic() + self.timeout
        refused = None
        for attempt in itertools.count():
            try:
                return method(request, timeout=max(deadline - time.monotonic(), 0.0))
            except grpc.RpcError as error:
                explained = self._explained(error, inputs)
                if refused and isinstance(explained, TimeoutError):
                    raise refused from error  # what kept it until the time was up
                if not isinstance(explained, ConnectionError):
                    raise explained from error
                refused = explained
                wait = min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT)
                if isinstance(explained, _MergedError):
                    wait = _MERGED_WAIT
                wait = random.uniform(0, wait)
                if time.monotonic() + wait > deadline:
                    raise explained from error
                _logger.info(
                    "A request to %s is sent again in %.3f seconds: %s",
                    self.address,
                    wait,
                    error.details(),
                )
            time.sleep(wait)

    def _explained(self, error, inputs):
        """The exception for an error of the server: ConnectionError if it may pass."""
        import grpc

        code, details = error.code(), error.details()
        where = f"{self.model_name!r} at {self.address}"
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return TimeoutError(
                f"The server must answer within timeout={self.timeout:g} seconds. "
                f"Received: no answer from {where}. Ask for fewer rows at a time with "
                "max_batch_size, or give a longer timeout."
            )
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
            return ConnectionError(
                f"The server must be there and have room. Received: {code.name} from "
                f"{where} ({details}), again and again for {self.timeout:g} seconds."
            )
        if code == grpc.StatusCode.NOT_FOUND:
            return ValueError(
                f"The server must serve the model. Received: {where} ({details}). "
                "Compare the name with the server's configuration."
            )
        rule = _RULE.search(details or "")
        said = f"{rule[1]} Received: {rule[2]}." if rule else details
        if not rule and not _SHAPES.search(details or ""):
            return ValueError(f"The server refused the request to {where}: {said}")
        if rule and (inputs is None or _LIMIT.search(rule[1])):
            return ValueError(said)
        in_range = rule and _RANGE.match(rule[1])
        if in_range:  # the one rule of values that is not known before a refusal
            name, largest = in_range.groups()
            try:
                checks.in_levels(inputs[name], int(largest) + 1, name=name)
            except ValueError as own_fault:
                return own_fault
        return _MergedError(
            f"All requests that the server merges must keep its rules. Received: this "
            f"one does, but {where} refused others with it ({said}), again and again "
            f"for {self.timeout:g} seconds. Send fewer bad requests, or serve without "
            "batching."
        )


class _MergedError(ConnectionError):
    """A good request was refused with a bad one that the server merged it with."""
