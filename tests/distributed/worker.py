"""One program that imports everything once and forks into the ranks of a gloo group; started by ``pool.py``.

A task is ``(file of this folder, function, keyword arguments, world size)``; the answer is ``(succeeded, result or
traceback)``.
"""

import importlib
import os
import pickle
import queue
import socket
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist

import vogn  # noqa: F401  (imported before the fork: once for all ranks)

SIZES = (2, 4)


def listen(connection, tasks, children):
    """The parent's end closes when it dies, even by a signal: then this rank ends too, whatever it is doing."""
    while True:
        try:
            tasks.put(pickle.loads(connection.recv_bytes()))
        except (EOFError, OSError):
            for child in children:  # they see the same
                os.waitpid(child, 0)
            os._exit(0)


def serve(rank, port, token, rendezvous, children):
    torch.set_num_threads(1)
    connection = Connection(socket.create_connection(("127.0.0.1", port)).detach())
    connection.send_bytes(token + bytes([rank]))
    tasks = queue.Queue()
    threading.Thread(target=listen, args=(connection, tasks, children), daemon=True).start()
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=max(SIZES))
    groups = {size: dist.group.WORLD if size == max(SIZES) else dist.new_group(list(range(size))) for size in SIZES}
    while True:
        path, function, arguments, size = tasks.get()
        try:
            answer = True, getattr(importlib.import_module(Path(path).stem), function)(rank, groups[size], **arguments)
        except BaseException:
            answer = False, traceback.format_exc()
        connection.send_bytes(pickle.dumps(answer))


if __name__ == "__main__":
    port, token, rendezvous = int(sys.argv[1]), bytes.fromhex(sys.argv[2]), sys.argv[3]
    me, children = 0, []
    for rank in range(1, max(SIZES)):
        child = os.fork()
        if child == 0:
            me, children = rank, []
            break
        children.append(child)
    serve(me, port, token, rendezvous, children)
