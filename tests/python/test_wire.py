"""A stock Python client against a running ps-server: the wire as a stranger would use it.

    ps-server --workers 1 --mode async --lr 0.5 --dtype f32 --rounds 0
    python3 tests/python/test_wire.py 127.0.0.1:50051        (or PS_SERVER in the environment)

Knows nothing but proto/: stubs are generated from it into a temporary folder, channels keep grpcio's
default options (4 MiB a message), and every expected value is numpy's. Ends with 0, or with a
traceback and 1. The server must be new: its theta is expected to be zeros at version 0.
"""

import argparse
import contextlib
import importlib
import importlib.resources
import itertools
import os
import pathlib
import queue
import sys
import tempfile
import threading
import time

import grpc
import numpy as np
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status
from grpc_tools import protoc

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"
LEARNING_RATE = np.float32(0.5)
CHUNK_BYTES = 960 * 1024
MESSAGE_BYTES_MAX = 1 << 20
DEADLINE_S = 120.0
SERVICES = ("ps.v1.Membership", "ps.v1.Operator", "ps.v1.Parameters")


@contextlib.contextmanager
def timed(what):
    """Prints how long the body took; nothing if it failed."""
    begin = time.perf_counter()
    yield
    print(f"{time.perf_counter() - begin:8.3f} s  {what}", flush=True)


def check(condition, what):
    """An assertion that `python -O` keeps."""
    if not condition:
        raise AssertionError(what)


def same_bits(got, expected, what):
    """Fails with the first element whose bits differ (so -0.0 is not 0.0)."""
    differs = np.flatnonzero(got.view(np.uint32) != expected.view(np.uint32))
    if differs.size:
        i = differs[0]
        raise AssertionError(
            f"{what}: {differs.size} of {got.size} elements differ, "
            f"first theta[{i}] = {got[i]!r}, expected {expected[i]!r}"
        )


def generate_stubs(folder):
    """Compiles proto/ into `folder`; gives the modules by name."""
    protos = sorted(str(p.relative_to(PROTO)) for p in PROTO.rglob("*.proto"))
    bundled = str(importlib.resources.files("grpc_tools") / "_proto")
    arguments = [
        "protoc", f"-I{PROTO}", f"-I{bundled}", f"--python_out={folder}",
        f"--grpc_python_out={folder}", *protos,
    ]
    check(protoc.main(arguments) == 0, "protoc refused proto/")
    sys.path.insert(0, folder)
    modules = {}
    for name in ("types", "membership", "parameters", "operator"):
        for suffix in ("_pb2", "_pb2_grpc"):
            modules[name + suffix] = importlib.import_module(f"ps.v1.{name}{suffix}")
    return argparse.Namespace(**modules)


class Worker:
    """One worker of the job: its place, its clock, and theta as it saw it last."""

    def __init__(self, pb, channel, n_elements):
        self.pb = pb
        self.n_elements = n_elements
        self.membership = pb.membership_pb2_grpc.MembershipStub(channel)
        self.parameters = pb.parameters_pb2_grpc.ParametersStub(channel)
        table = pb.types_pb2.Table(
            name="theta",
            shape=[n_elements],
            initializer=pb.types_pb2.Initializer(kind=pb.types_pb2.Initializer.KIND_ZEROS),
        )
        self.place = self.membership.Join(
            pb.membership_pb2.JoinRequest(
                protocol_version=1,
                role=pb.types_pb2.ROLE_WORKER,
                tables=[table],
                dtype=pb.types_pb2.DTYPE_F32,
                program="test_wire.py",
            ),
            timeout=DEADLINE_S,
        )
        self.clock = self.place.clock
        self.version = self.place.version
        self._left = threading.Event()
        self._beats = threading.Thread(target=self._heartbeat, daemon=True)
        self._beats.start()

    def _heartbeat(self):
        request = self.pb.membership_pb2.HeartbeatRequest(**self._who())
        while not self._left.wait(self.place.lease_ms / 3000):
            self.membership.Heartbeat(request, timeout=DEADLINE_S)

    def _who(self):
        return {"rank": self.place.rank, "incarnation": self.place.incarnation}

    def leave(self):
        """Leaves; gives the job's state."""
        self._left.set()
        self._beats.join()
        request = self.pb.membership_pb2.LeaveRequest(**self._who())
        return self.membership.Leave(request, timeout=DEADLINE_S).state

    def chunks(self, gradient):
        """The messages of one push, of the clock that the worker owes."""
        view = memoryview(gradient).cast("B")
        for begin in range(0, len(view), CHUNK_BYTES):
            end = min(begin + CHUNK_BYTES, len(view))
            request = self.pb.parameters_pb2.PushRequest(
                dtype=self.pb.types_pb2.DTYPE_F32,
                key=begin // gradient.itemsize,
                last=end == len(view),
                data=view[begin:end].tobytes(),
            )
            if begin == 0:
                request.header.CopyFrom(
                    self.pb.parameters_pb2.PushHeader(
                        **self._who(), clock=self.clock, version_pulled=self.version, n_samples=1
                    )
                )
            check(request.ByteSize() <= MESSAGE_BYTES_MAX, "a message of ours above 1 MiB")
            yield request

    def push(self, gradient):
        """One push; gives its result and leaves the clock where it is."""
        return self.parameters.Push(self.chunks(gradient), timeout=DEADLINE_S).result

    def pull(self):
        """Theta, checked to be one version in chunks without a gap."""
        request = self.pb.parameters_pb2.PullRequest(**self._who())
        theta, version = self._assemble(self.parameters.Pull(request, timeout=DEADLINE_S))
        self.version = version
        return theta

    def _assemble(self, responses):
        theta = np.empty(self.n_elements, np.float32)
        end = 0
        version = None
        for response in responses:
            check(response.ByteSize() <= MESSAGE_BYTES_MAX, f"a message of {response.ByteSize()} B")
            check(response.dtype == self.pb.types_pb2.DTYPE_F32, f"dtype {response.dtype}")
            check(response.key == end, f"a chunk begins at {response.key}, expected {end}")
            check(version in (None, response.version), "chunks of several versions in one answer")
            version = response.version
            part = np.frombuffer(response.data, "<f4")
            theta[end : end + part.size] = part
            end += part.size
            if response.last:
                check(end == self.n_elements, f"theta ends at {end} of {self.n_elements}")
                return theta, version
        raise AssertionError(f"the stream ended at {end} of {self.n_elements} without a last chunk")

    def push_rows(self, rows, values, asked):
        """One step of rows of theta's table, which has rows of one element; gives those that were asked for."""
        pb = self.pb.parameters_pb2
        header = pb.PushHeader(
            **self._who(), clock=self.clock, version_pulled=self.version, n_samples=1, sparse=True
        )
        messages = [
            pb.PushRequest(header=header, part=pb.PART_ROWS, data=rows.astype("<u4").tobytes()),
            pb.PushRequest(part=pb.PART_ASKED, data=asked.astype("<u4").tobytes()),
            pb.PushRequest(
                dtype=self.pb.types_pb2.DTYPE_F32, last=True, data=values.astype("<f4").tobytes()
            ),
        ]
        responses = list(self.parameters.PushPull(iter(messages), timeout=DEADLINE_S))
        self.counted(responses[0].result)
        self.version = responses[-1].version
        return np.frombuffer(b"".join(response.data for response in responses), "<f4")

    def pull_rows(self, rows):
        """Some rows of the only table."""
        words = np.concatenate([[0, rows.size], rows])
        request = self.pb.parameters_pb2.PullRequest(
            **self._who(), asked=words.astype("<u4").tobytes()
        )
        responses = self.parameters.Pull(request, timeout=DEADLINE_S)
        return np.frombuffer(b"".join(response.data for response in responses), "<f4")

    def counted(self, result, outcome_name="OUTCOME_APPLIED"):
        """Checks a push's outcome and takes over the clock that the server expects next."""
        outcome = self.pb.parameters_pb2.Outcome.Name(result.outcome)
        check(outcome == outcome_name, f"the push is {outcome}, expected {outcome_name}")
        self.clock = result.clock

    def push_pull(self, gradients):
        """Several steps on one stream; yields theta after each."""
        outgoing = queue.SimpleQueue()
        call = self.parameters.PushPull(iter(outgoing.get, None), timeout=DEADLINE_S)
        try:
            for gradient in gradients:
                for request in self.chunks(gradient):
                    outgoing.put(request)
                first = next(call)
                self.counted(first.result)
                theta, self.version = self._assemble(itertools.chain([first], call))
                yield theta
        finally:
            # Ends the stream; without it an error here would leave grpcio's thread waiting.
            outgoing.put(None)
        check(next(call, None) is None, "the stream goes on after its last step")


def check_health(channel):
    """The server as a whole serves; Parameters does not yet, without a theta."""
    stub = health_pb2_grpc.HealthStub(channel)
    for service, expected in (("", "SERVING"), ("ps.v1.Parameters", "NOT_SERVING")):
        status = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE_S).status
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(status)
        check(name == expected, f"health of '{service}' is {name}, expected {expected}")


def watch_until_serving(channel):
    """Parameters serves soon after there is a theta; the answer to a join does not wait for that."""
    request = health_pb2.HealthCheckRequest(service="ps.v1.Parameters")
    watch = health_pb2_grpc.HealthStub(channel).Watch(request, timeout=DEADLINE_S)
    for answer in watch:
        if answer.status == health_pb2.HealthCheckResponse.SERVING:
            watch.cancel()
            return
    raise AssertionError("the watch on health ended before Parameters served")


def check_reflection(pb, channel):
    """The server describes the services that proto/ describes."""
    database = ProtoReflectionDescriptorDatabase(channel)
    listed = set(database.get_services())
    for service in (*SERVICES, "grpc.health.v1.Health"):
        check(service in listed, f"reflection lists {sorted(listed)}, without {service}")
    ours = pb.parameters_pb2.DESCRIPTOR.services_by_name["Parameters"]
    file = database.FindFileContainingSymbol("ps.v1.Parameters")
    theirs = next(s for s in file.service if s.name == "Parameters")
    signature = [(m.name, m.client_streaming, m.server_streaming) for m in ours.methods]
    reflected = [(m.name, m.client_streaming, m.server_streaming) for m in theirs.method]
    check(reflected == signature, f"reflection says {reflected}, proto/ says {signature}")


def check_refusal(worker, gradient):
    """A NaN in the very last element is refused with its reason, on the standard error model."""
    poisoned = gradient.copy()
    poisoned[-1] = np.nan
    try:
        worker.push(poisoned)
    except grpc.RpcError as error:
        check(error.code() == grpc.StatusCode.INVALID_ARGUMENT, f"refused with {error.code()}")
        status = rpc_status.from_call(error)
        check(status is not None, "no grpc-status-details-bin with the refusal")
        info = error_details_pb2.ErrorInfo()
        unpacked = [info for detail in status.details if detail.Unpack(info)]
        check(unpacked, f"no ErrorInfo in {status}")
        said = (info.domain, info.reason)
        check(said == ("ps.v1", "NON_FINITE"), f"refused with {said}")
        return error.details()
    raise AssertionError("a push with a NaN was taken")


def check_version(pb, channel, version):
    stub = pb.operator_pb2_grpc.OperatorStub(channel)
    status = stub.Status(pb.operator_pb2.StatusRequest(), timeout=DEADLINE_S)
    check(status.version == version, f"status says version {status.version}, expected {version}")
    state = pb.types_pb2.JobState.Name(status.state)
    check(state == "JOB_STATE_RUNNING", f"the job is {state}")


def run(pb, channel, n_elements, n_steps):
    random = np.random.default_rng(20)

    def gradient():
        return random.standard_normal(n_elements, dtype=np.float32)

    with timed("health, without a theta yet"):
        check_health(channel)
    with timed("reflection"):
        check_reflection(pb, channel)
    with timed(f"join, one table of {n_elements} f32"):
        worker = Worker(pb, channel, n_elements)
    with timed("health, watched until it has one"):
        watch_until_serving(channel)
    check(worker.place.dim == n_elements, f"dim {worker.place.dim}")
    check(worker.place.mode == pb.types_pb2.MODE_ASYNC, "the server is not --mode async")

    expected = np.zeros(n_elements, np.float32)
    with timed("pull"):
        theta = worker.pull()
    same_bits(theta, expected, "theta at first")
    check(worker.version == 0, f"the server is not new: version {worker.version}")

    g = gradient()
    with timed("push"):
        result = worker.push(g)
    again = worker.clock
    worker.counted(result)
    check(worker.clock == again + 1, f"clock {worker.clock} after {again}")
    expected -= LEARNING_RATE * g
    with timed("pull"):
        theta = worker.pull()
    same_bits(theta, expected, "after a push")

    worker.clock = again
    with timed("the same push again, which must not count"):
        worker.counted(worker.push(g), "OUTCOME_DUPLICATE")
        same_bits(worker.pull(), expected, "after the same push again")

    gradients = [gradient() for _ in range(n_steps)]
    with timed(f"push-pull, {n_steps} steps on one stream, compared with numpy"):
        for step, theta in enumerate(worker.push_pull(gradients)):
            expected -= LEARNING_RATE * gradients[step]
            same_bits(theta, expected, f"after step {step} of a stream")
    del gradients

    with timed("a push with a NaN, which is refused"):
        message = check_refusal(worker, g)
    print(f"            the refusal: {message}")
    version = worker.version
    same_bits(worker.pull(), expected, "after a refused push")
    check(worker.version == version, f"version {worker.version} after a refusal at {version}")

    with timed("the same clock with a good gradient"):
        worker.counted(worker.push(g))
        expected -= LEARNING_RATE * g
        same_bits(worker.pull(), expected, "after a refused and a good push")
    with timed("rows of theta: some pushed, others asked for"):
        rows = np.unique(random.integers(0, n_elements, 1000))
        values = random.standard_normal(rows.size, dtype=np.float32)
        asked = random.permutation(rows)[:500]
        expected[rows] -= LEARNING_RATE * values
        same_bits(worker.push_rows(rows, values, asked), expected[asked], "the rows asked for")
        same_bits(worker.pull_rows(asked[::-1]), expected[asked[::-1]], "rows that are pulled")
        same_bits(worker.pull(), expected, "all of theta after a push of rows")
    check_version(pb, channel, n_steps + 3)
    with timed("leave"):
        worker.leave()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("server", nargs="?", default=os.environ.get("PS_SERVER"), help="HOST:PORT")
    parser.add_argument("--elements", type=int, default=25_000_000, help="of theta")
    parser.add_argument("--steps", type=int, default=3, help="of the push-pull stream")
    arguments = parser.parse_args()
    if not arguments.server:
        parser.error("name the server: HOST:PORT as an argument or in PS_SERVER")
    target = arguments.server.removeprefix("http://").rstrip("/")

    with tempfile.TemporaryDirectory(prefix="ps-wire-") as folder:
        with timed("stubs from proto/"):
            pb = generate_stubs(folder)
        begin = time.perf_counter()
        with grpc.insecure_channel(target) as channel:
            run(pb, channel, arguments.elements, arguments.steps)
        print(f"{time.perf_counter() - begin:8.3f} s  in all")


if __name__ == "__main__":
    main()
