"""A stock Python client over mutual TLS with a token, against a running ps-server.

    python3 tests/python/test_tls.py localhost:50051 certs        (a folder that psctl certs made)

Knows grpcio alone: messages are bytes, an empty one is a valid request of every call used here. Ends
with 0, or with a traceback and 1.
"""

import pathlib
import sys

import grpc


def call(channel, path, message=b""):
    """The answer's bytes, or the code of the refusal."""
    try:
        return channel.unary_unary(path)(message, timeout=30)
    except grpc.RpcError as error:
        return error.code()


def main():
    address, folder = sys.argv[1], pathlib.Path(sys.argv[2])

    def read(name):
        return (folder / name).read_bytes()

    def channel(role, token):
        key, certificate = (read(f"{role}-key.pem"), read(f"{role}.pem")) if role else (None, None)
        credentials = grpc.ssl_channel_credentials(read("ca.pem"), key, certificate)
        if token:
            token = read(f"{token}.token").decode().strip()
            credentials = grpc.composite_channel_credentials(
                credentials, grpc.access_token_call_credentials(token)
            )
        return grpc.secure_channel(address, credentials)

    status, health = "/ps.v1.Operator/Status", "/grpc.health.v1.Health/Check"
    for role, token, path, expected in [
        ("operator", "operator", status, bytes),
        ("operator", "worker", status, grpc.StatusCode.PERMISSION_DENIED),
        ("operator", None, status, grpc.StatusCode.UNAUTHENTICATED),
        ("operator", None, health, bytes),
        (None, "operator", status, grpc.StatusCode.UNAVAILABLE),
    ]:
        with channel(role, token) as connection:
            got = call(connection, path)
        right = isinstance(got, bytes) if expected is bytes else got == expected
        if not right:
            raise AssertionError(f"{role}, token {token}, {path}: {got!r}, expected {expected}")
    print("a stock client is let in with certificate and token, and only so")


if __name__ == "__main__":
    main()
