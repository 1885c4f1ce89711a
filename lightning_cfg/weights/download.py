"""Weight files over HTTP: a download that goes on where it was cut off, and is checked."""

import contextlib
import http.client
import json
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path

from lightning_cfg import __version__
from lightning_cfg.errors import UserError
from lightning_cfg.runs.files import write_text
from lightning_cfg.weights.catalogue import Asset, asset_of
from lightning_cfg.weights.store import altered, fault_of, find, place, record

CHUNK = 2**20  # bytes that are read at a time, at most
TRANSIENT = (408, 429, 500, 502, 503, 504)  # of a busy server: worth asking again


def fetch(
    name: str,
    *,
    timeout: float = 30.0,
    retries: int = 4,
    pause: float = 1.0,
    say: Callable[[str], object] = print,
) -> Path:
    """Download the file of that name unless it is here already; returns what `find` does.

    timeout  seconds without a byte after which a connection counts as lost
    retries  how often in a row a lost connection is taken up again without getting further
    pause    seconds before the first of them, doubled for each one after
    say      takes the lines that report on it

    Goes on with the part that an earlier call, or a killed one, has left. Raises UserError where
    it cannot be had, or is not what it should be.
    """
    asset = asset_of(name)
    file = place(asset)
    if file.is_file():
        fault = fault_of(asset, file)
        if fault is None:
            if asset.is_code and altered(file):
                shutil.rmtree(file.with_suffix(""))  # and so it is unpacked again
            new = record(asset, file)
            how = "no hash to compare with, so its own is recorded now" if new else "sha256 right"
            say(f"{name}: here already, {how}: {file}")
            return find(name)
        say(f"{name}: {file} has {fault}; fetching it again")
    part = file.with_name(f"{file.name}.part")
    note = file.with_name(f"{file.name}.part.json")
    with _writing(asset):
        file.parent.mkdir(parents=True, exist_ok=True)
    with _held(asset, part) as open_part:
        _download(asset, open_part, note, timeout=timeout, retries=retries, pause=pause)
    if fault := fault_of(asset, part):
        part.unlink()
        note.unlink(missing_ok=True)
        raise _failed(asset, f"what came has {fault}, and was removed")
    with _writing(asset):
        if asset.is_code:
            shutil.rmtree(file.with_suffix(""), ignore_errors=True)  # of another zip
        os.replace(part, file)
        note.unlink(missing_ok=True)
        record(asset, file)
    found = find(name)
    say(f"{name}: fetched, {file.stat().st_size:,} bytes: {found}")
    return found


def _failed(asset: Asset, reason: str) -> UserError:
    return UserError(
        f"{asset.name}: {asset.url} could not be fetched: {reason};"
        f" try again, or put the file at {place(asset)}"
    )


@contextlib.contextmanager
def _writing(asset: Asset) -> Iterator[None]:
    """OSErrors of the disk (full, not writable) become UserErrors; those outside are the net's."""
    try:
        yield
    except OSError as error:
        raise _failed(asset, f"it could not be written ({error})") from error


@contextlib.contextmanager
def _held(asset: Asset, part: Path) -> Iterator[FileIO]:
    """The partial file, open to append to and held against other processes; none if left empty."""
    busy = UserError(f"{asset.name} is being fetched by another process ({part} is held)")
    with _writing(asset):
        file = open(part, "ab", buffering=0)  # so that what came is in the file if we are killed
    with file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        except (ImportError, OSError):
            pass  # neither Windows nor every network file system has locks
        if not (part.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(part))):
            raise busy  # which has just renamed it
        try:
            yield file
        finally:
            if _size(file) == 0:
                part.unlink(missing_ok=True)
                part.with_name(f"{part.name}.json").unlink(missing_ok=True)


def _size(file: FileIO) -> int:
    return os.fstat(file.fileno()).st_size


def _download(
    asset: Asset, file: FileIO, note: Path, *, timeout: float, retries: int, pause: float
) -> None:
    """All of the asset's bytes into `file`, with as many connections as it takes."""
    failures, first = 0, _size(file)
    furthest = first
    while True:
        try:
            _receive(asset, file, note, timeout)
            with _writing(asset):
                os.fsync(file.fileno())
            return
        except (OSError, http.client.HTTPException) as error:
            reason = _reason(error, timeout)
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it is an answer too
                if error.code == 416 and _size(file):  # there is no such rest: not this file's part
                    file.truncate(0)
                final = error.code not in (416, *TRANSIENT)
            else:  # no connection at all is final, unless there was one just now
                final = isinstance(error, urllib.error.URLError) and furthest == first
            failures = 0 if _size(file) > furthest else failures + 1
            furthest = max(furthest, _size(file))
            if final or failures > retries:
                raise _failed(asset, reason) from error
            time.sleep(pause * 2 ** max(0, failures - 1))


def _reason(error: Exception, timeout: float) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    cause = getattr(error, "reason", error)
    if isinstance(cause, TimeoutError):
        return f"nothing came for {timeout:g} s"
    return str(cause) or type(cause).__name__


def _receive(asset: Asset, file: FileIO, note: Path, timeout: float) -> None:
    """The bytes of one answer, after those that `file` has; `note` keeps what the first one said.

    Raises OSError or HTTPException where the connection is lost, UserError where it is no use.
    """
    from tqdm import tqdm  # here, as a table needs none

    first = _read_note(note)
    if first.get("url") != asset.url and _size(file):
        file.truncate(0)
    done = _size(file)
    if done and done == first.get("total"):
        return
    headers = {"User-Agent": f"lightning_cfg/{__version__}"}
    if done:
        headers["Range"] = f"bytes={done}-"
    request = urllib.request.Request(asset.url, headers=headers)
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        begins, said = _said(answer)
        if done and not (begins == done and _same(first, said)):
            file.truncate(0)
            done = 0
        if begins != done:
            raise ConnectionError("the file has changed meanwhile")  # and is asked for anew
        total = said["total"]
        if asset.size and total and total != asset.size:
            raise _failed(asset, f"it has {total:,} bytes there, not {asset.size:,}")
        free = shutil.disk_usage(note.parent).free
        if total and free < total - done:
            raise _failed(asset, f"{total - done:,} bytes are to come and {free:,} are free")
        if not done:
            with _writing(asset):
                write_text(note, json.dumps({"url": asset.url, **said}))
        with tqdm(
            desc=asset.name,
            total=total,
            initial=done,
            unit="B",
            unit_scale=True,
            disable=not sys.stderr.isatty(),
        ) as bar:
            for chunk in _chunks(answer, total and total - done):
                with _writing(asset):
                    _append(file, chunk)
                done += len(chunk)
                bar.update(len(chunk))
    if total is not None and done != total:
        raise ConnectionError(f"the connection ended after {done:,} of {total:,} bytes")


def _append(file: FileIO, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:  # unbuffered, a write may take a part only
        rest = rest[file.write(rest) :]


def _chunks(answer: http.client.HTTPResponse, length: int | None) -> Iterator[bytes]:
    """The bytes of an answer as they come, to its end or to `length`."""
    while length is None or length > 0:
        chunk = answer.read1(CHUNK)  # not read: that would lose what came before a stall
        if not chunk:
            return
        yield chunk
        length = length and length - len(chunk)


def _said(answer: http.client.HTTPResponse) -> tuple[int, dict]:
    """The byte that an answer begins at; the whole file's length, and what marks its version."""
    begins, total = 0, answer.headers["Content-Length"]
    if answer.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers["Content-Range"] or "")
        if match is None:
            raise ConnectionError("the server's answer to a part is not one")
        begins, total = int(match[1]), match[2] if match[2] != "*" else None
    return begins, {
        "etag": answer.headers["ETag"],
        "modified": answer.headers["Last-Modified"],
        "total": None if total is None else int(total),
    }


def _same(first: dict, said: dict) -> bool:
    """Whether two answers are of one version of the file, by what both of them say."""
    return all(first.get(key) in (None, said[key]) for key in said if said[key] is not None)


def _read_note(note: Path) -> dict:
    try:
        read = json.loads(note.read_text())
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}
