"""Whether the other processes of a verb are still there: each holds a connection to the first one.

The operating system closes it when a process ends, however it ends, so the others hear of it at
once and not when they next wait for it; a machine that is gone is told by the connection's own
probes within a minute.
"""

import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lightning_cfg.errors import RankLost, UserError

GOODBYE = b"."  # said by who has done its part
PROBES = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4}  # seconds, seconds, times
SIGNAL = signal.SIGUSR2  # of this process to itself, by which its main thread hears of it


@contextmanager
def watched(rank: int, size: int, address: str, tell: Callable[[int], list]) -> Iterator[None]:
    """For as long as it takes, RankLost in the main thread where another process ends early.

    address  of the first one
    tell     gives every process what each of them has said
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # where Python takes no signals
        return
    peers = _connected(rank, size, address, tell)

    def hear(number: int, frame: object) -> None:
        raise RankLost(
            f"rank {rank}: another rank has ended or cannot be reached, and says itself why"
        )

    before = signal.signal(SIGNAL, hear)
    leaving = threading.Event()
    threading.Thread(target=_watch, args=(list(peers), leaving), daemon=True).start()
    try:
        yield
        _say_goodbye(peers)
    except (UserError, KeyboardInterrupt):  # which all of them raise, or hear of by themselves
        _say_goodbye(peers)
        raise
    finally:
        leaving.set()
        # never the default again, which would end a process that heard of it just now
        signal.signal(SIGNAL, before if callable(before) else signal.SIG_IGN)
        for peer in peers:
            peer.close()


def _connected(
    rank: int, size: int, address: str, tell: Callable[[int], list]
) -> list[socket.socket]:
    """The first process's connections to all others, another one's to the first."""
    if rank:
        peers = [socket.create_connection((address, tell(0)[0]), timeout=60)]
    else:
        with socket.create_server(("", 0), backlog=size) as server:
            server.settimeout(60)
            tell(server.getsockname()[1])
            peers = [server.accept()[0] for _ in range(size - 1)]
    for peer in peers:
        peer.settimeout(None)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in PROBES.items():
            if hasattr(socket, name):  # not on every system
                peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return peers


def _watch(peers: list[socket.socket], leaving: threading.Event) -> None:
    while peers and not leaving.is_set():
        try:
            for peer in select.select(peers, [], [], 1.0)[0]:
                if peer.recv(1) != GOODBYE:
                    raise ConnectionError
                peers.remove(peer)
        except (OSError, ValueError):  # ValueError: closed here, in leaving
            if not leaving.is_set():
                os.kill(os.getpid(), SIGNAL)
            return


def _say_goodbye(peers: list[socket.socket]) -> None:
    for peer in peers:
        try:
            peer.sendall(GOODBYE)
        except OSError:
            pass  # it has gone by itself, after its part
