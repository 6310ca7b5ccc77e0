"""Four gloo ranks that live as long as the test session and run functions of test helper files."""

import os
import pickle
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

RANKS = 4
WORKER = str(Path(__file__).with_name("worker.py"))


class Pool:
    """``run`` sends a function to the first ranks and collects what they return.

    Args:
        seconds: how long a task may take before its ranks count as blocked; the pool starts anew after that.
    """

    def __init__(self, seconds=60):
        self.seconds = seconds
        self._connections = None

    def _start(self):
        token = secrets.token_bytes(16)
        self._folder = tempfile.TemporaryDirectory()
        with socket.create_server(("127.0.0.1", 0), backlog=RANKS) as server:
            server.settimeout(1.0)
            port = server.getsockname()[1]
            rendezvous = str(Path(self._folder.name) / "rendezvous")
            environment = os.environ | {
                "OMP_NUM_THREADS": "1",
                "GLOO_SOCKET_IFNAME": "lo",
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),  # the package under test
            }
            self._process = subprocess.Popen(
                [sys.executable, WORKER, str(port), token.hex(), rendezvous], env=environment
            )
            self._connections = {}
            while len(self._connections) < RANKS:
                if self._process.poll() is not None:
                    self._connections = None
                    raise AssertionError("the ranks could not be started; see their output")
                try:
                    accepted, _ = server.accept()
                except TimeoutError:
                    continue
                accepted.setblocking(True)
                connection = Connection(accepted.detach())
                hello = connection.recv_bytes()
                if secrets.compare_digest(hello[:-1], token):
                    self._connections[hello[-1]] = connection

    def stop(self):
        """Close the connections: every rank ends by itself."""
        if self._connections is None:
            return
        for connection in self._connections.values():
            connection.close()
        self._process.wait(timeout=30)
        self._folder.cleanup()
        self._connections = None

    def run(self, path, function, size=2, **arguments):
        """What ``function(rank, group, **arguments)`` of the file returns on each of ``size`` ranks, by rank.

        Raises:
            AssertionError: with the tracebacks of the ranks that failed, or naming the ranks that never answered.
        """
        if self._connections is None:
            self._start()
        for rank in range(size):
            self._connections[rank].send_bytes(pickle.dumps((path, function, arguments, size)))
        end = time.monotonic() + self.seconds
        answers = {}
        for rank in range(size):
            if self._connections[rank].poll(max(0.0, end - time.monotonic())):
                answers[rank] = pickle.loads(self._connections[rank].recv_bytes())
        failed = {rank: text for rank, (succeeded, text) in answers.items() if not succeeded}
        silent = sorted(set(range(size)) - set(answers))
        if failed or silent:
            self.stop()  # a failed rank may have left the others inside a collective
            texts = "\n".join(f"rank {rank}:\n{text}" for rank, text in failed.items())
            raise AssertionError(f"ranks {silent} are blocked\n{texts}" if silent else texts)
        return [answers[rank][1] for rank in range(size)]
