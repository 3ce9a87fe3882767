"""A test double of TensorFlow Serving: its PredictionService, over gRPC.

It loads a SavedModel through the session loader that the server uses, and its queue
merges requests into batches as the server's BatchingSession does: inputs of one
signature are concatenated along the first axis, padded to an allowed batch size with
copies of the first row, run once and split; an error fails every request in the batch.
Not the server, and not for users: timings and protocols beside `Predict` and
`GetModelMetadata` are not its.

    python tests/serving_double.py FOLDER NAME

serves until it is killed, and prints its address.
"""

import argparse
import contextlib
import os
import queue
import signal
import threading
import time
from concurrent import futures

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

from vaezoo.serving import saved_model


class _Refused(Exception):
    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """One model, and for each signature a thread that merges its requests."""

    def __init__(
        self,
        folder,
        name,
        *,
        batch_sizes=saved_model.BATCH_SIZES,
        wait_seconds=0.002,
        warm_up=False,
    ):
        self.name = name
        self.batch_sizes = batch_sizes
        self.wait_seconds = wait_seconds
        self.num_batches = 0
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        with self._session.graph.as_default():
            loaded = tf.compat.v1.saved_model.load(self._session, ["serve"], folder)
        self._signatures = {
            key: signature
            for key, signature in loaded.signature_def.items()
            if not key.startswith("__")
        }
        self._callables = {}
        if warm_up:
            self._warm_up(folder)
        self._queues = {key: queue.Queue() for key in self._signatures}
        for key in self._signatures:
            threading.Thread(target=self._serve, args=(key,), daemon=True).start()

    def _callable(self, signature):
        """Runs a signature as a session in C++ does: `run` also compares the shapes."""
        options = config_pb2.CallableOptions(
            feed=[info.name for info in signature.inputs.values()],
            fetch=[info.name for info in signature.outputs.values()],
        )
        call = self._session._make_callable_from_options(options)

        def run(inputs):
            outputs = call(*(inputs[name] for name in signature.inputs))
            return dict(zip(signature.outputs, outputs, strict=True))

        return run

    def _warm_up(self, folder):
        """Replay the requests that the export brings, as the server does."""
        file = os.path.join(folder, saved_model.EXTRA_FOLDER, saved_model.WARMUP_FILE)
        for record in tf.data.TFRecordDataset(file).as_numpy_iterator():
            log = prediction_log_pb2.PredictionLog.FromString(record)
            request = log.predict_log.request
            key = request.model_spec.signature_name
            inputs = self._checked(key, request)
            future = futures.Future()
            self._run(key, [(inputs, future)], len(next(iter(inputs.values()))))
            future.result()

    def GetModelMetadata(self, request, context):  # noqa: N802
        """Signatures, as the server gives them."""
        self._check_name(request.model_spec, context)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for key, signature in self._signatures.items():
            signatures.signature_def[key].CopyFrom(signature)
        answer = get_model_metadata_pb2.GetModelMetadataResponse()
        answer.metadata["signature_def"].Pack(signatures)
        return answer

    def Predict(self, request, context):  # noqa: N802
        """Queue the request, and wait for its part of a batch."""
        self._check_name(request.model_spec, context)
        key = request.model_spec.signature_name or "serving_default"
        try:
            inputs = self._checked(key, request)
        except _Refused as error:
            context.abort(error.code, str(error))
        future = futures.Future()
        self._queues[key].put((inputs, future))
        try:
            outputs = future.result()
        except _Refused as error:
            context.abort(error.code, str(error))
        answer = predict_pb2.PredictResponse()
        for name, value in outputs.items():
            answer.outputs[name].CopyFrom(tf.make_tensor_proto(value))
        return answer

    def _check_name(self, spec, context):
        if spec.name != self.name:
            context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"Servable not found for request: {spec.name}",
            )

    def _checked(self, key, request):
        if key not in self._signatures:
            raise _Refused(
                grpc.StatusCode.FAILED_PRECONDITION,
                f'Serving signature name: "{key}" not found in signature def',
            )
        expected = self._signatures[key].inputs
        inputs = {k: tf.make_ndarray(v) for k, v in request.inputs.items()}
        invalid = grpc.StatusCode.INVALID_ARGUMENT
        if inputs.keys() != expected.keys():
            raise _Refused(invalid, f"input keys must be {sorted(expected)}")
        for name, value in inputs.items():
            info = expected[name]
            if tf.as_dtype(info.dtype) != tf.as_dtype(value.dtype):
                raise _Refused(invalid, f"{name}: Expects arg of type {info.dtype}")
            if value.ndim == 0:
                raise _Refused(
                    invalid,
                    "Batching session Run() input tensors must have at least one "
                    "dimension",
                )
        if len({len(value) for value in inputs.values()}) != 1:
            raise _Refused(
                invalid, "Batching session Run() inputs must have equal size"
            )
        rows, most = len(next(iter(inputs.values()))), self.batch_sizes[-1]
        if rows > most:
            raise _Refused(
                invalid,
                f"Task size {rows} is larger than maximum input batch size {most}",
            )
        return inputs

    def _serve(self, key):
        """Forever: collect requests until the largest batch is full or time is up."""
        waiting = self._queues[key]
        held = None
        while True:
            requests = [held or waiting.get()]
            held = None
            rows = len(next(iter(requests[0][0].values())))
            deadline = time.monotonic() + self.wait_seconds
            while rows < self.batch_sizes[-1]:
                try:
                    held = waiting.get(timeout=max(deadline - time.monotonic(), 0))
                except queue.Empty:
                    break
                more = len(next(iter(held[0].values())))
                if rows + more > self.batch_sizes[-1]:
                    break
                requests.append(held)
                rows, held = rows + more, None
            self._run(key, requests, rows)

    def _run(self, key, requests, rows):
        self.num_batches += 1
        try:
            padded = next((size for size in self.batch_sizes if size >= rows), rows)
            feed = {}
            for name in self._signatures[key].inputs:
                parts = [inputs[name] for inputs, _ in requests]
                if len({part.shape[1:] for part in parts}) > 1:
                    raise tf.errors.FailedPreconditionError(
                        None,
                        None,
                        f"Tensors with name '{name}' from different tasks have "
                        "different shapes and padding is turned off",
                    )
                value = np.concatenate(parts)
                if rows:
                    copies = np.repeat(value[:1], padded - rows, axis=0)
                    value = np.concatenate([value, copies])
                feed[name] = value
            if key not in self._callables:
                self._callables[key] = self._callable(self._signatures[key])
            outputs = self._callables[key](feed)
        except tf.errors.OpError as error:
            code = grpc.StatusCode.INVALID_ARGUMENT
            if isinstance(error, tf.errors.FailedPreconditionError):
                code = grpc.StatusCode.FAILED_PRECONDITION
            for _, future in requests:
                future.set_exception(_Refused(code, error.message))
            return
        start = 0
        for inputs, future in requests:
            stop = start + len(next(iter(inputs.values())))
            future.set_result({k: v[start:stop] for k, v in outputs.items()})
            start = stop


@contextlib.contextmanager
def serving(folder, name, *, port=0, **options):
    """The double on a port of 127.0.0.1: yields its address and the service."""
    service = PredictionService(str(folder), name, **options)
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=80))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"127.0.0.1:{port}", service
    finally:
        server.stop(None)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("name")
    args = parser.parse_args()
    with serving(args.folder, args.name, warm_up=True) as (address, _):
        print(address, flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
