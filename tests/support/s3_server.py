"""An S3 server on loopback for tests (moto, in a process of its own), which can be away for a while.

    with running() as server:
        url, environment = server.bucket("data"), server.environment()
        with server.away():
            ...

Run as a program it is that process: it reads `stop` and `start` from its standard input and ends with it, and it keeps
its objects while it does not listen.
"""

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

KEY, SECRET = "testing", "secret"


class S3Server:
    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(self.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._answer()

    def environment(self, key: str = KEY, secret: str = SECRET) -> dict[str, str]:
        """The variables with which boto3, and so lrtrain, finds this server, and nothing of the user's."""
        none = os.devnull
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": none,
            "AWS_SHARED_CREDENTIALS_FILE": none,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, service: str = "s3") -> Any:
        session = boto3.Session(KEY, SECRET, region_name="us-east-1")
        return session.client(service, endpoint_url=self.url, config=Config(retries={"total_max_attempts": 1}))

    def bucket(self, name: str) -> str:
        """Makes a bucket and returns its URL."""
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}"

    def stop(self) -> None:
        self._tell("stop")

    def start(self) -> None:
        self._tell("start")

    @contextmanager
    def away(self) -> Iterator[None]:
        """Refuses connections meanwhile; the objects stay."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Takes connections meanwhile and answers none."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    @contextmanager
    def checking_credentials(self) -> Iterator[None]:
        """Refuses requests whose credentials are no user's of its IAM, which are made with `client("iam")` before."""
        self._check_credentials_after("0")
        try:
            yield
        finally:
            self._check_credentials_after("inf")

    def _check_credentials_after(self, requests: str) -> None:
        asked = urllib.request.Request(
            f"{self.url}/moto-api/reset-auth", requests.encode(), {"Content-Type": "text/plain"}
        )
        urllib.request.urlopen(asked).close()

    def close(self) -> None:
        with suppress(OSError):
            self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()

    def _tell(self, command: str) -> None:
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> None:
        if self._process.stdout.readline().strip() != "done":
            raise RuntimeError(f"the S3 server on port {self.port} has ended: {self._process.poll()}")


@contextmanager
def running() -> Iterator[S3Server]:
    """A server for a fixture: `with running() as server: yield server`."""
    server = S3Server()
    try:
        yield server
    finally:
        server.close()


def main(port: int) -> None:
    import logging

    from moto.moto_server.werkzeug_app import MotoRequestHandler
    from moto.server import ThreadedMotoServer

    MotoRequestHandler.protocol_version = "HTTP/1.0"  # connections that are kept would be served in an outage too
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = _started(ThreadedMotoServer, port)
    for line in sys.stdin:
        if line.strip() == "stop":
            server.stop()
            server._server.server_close()  # the port, which refuses from here on
            print("done", flush=True)
        else:
            server = _started(ThreadedMotoServer, port)


def _started(kind: Any, port: int) -> Any:
    server = kind("127.0.0.1", port=port, verbose=False)
    server.start()
    print("done", flush=True)
    return server


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).parent))  # its modules must not hide packages
    main(int(sys.argv[1]))
