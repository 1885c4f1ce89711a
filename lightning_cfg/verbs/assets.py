"""The weight files that feature extractors need: what they are, and how they come here.

    python -m lightning_cfg.assets                  a table of all of them
    python -m lightning_cfg.assets fetch NAME ...   download them ("all": every one)
    python -m lightning_cfg.assets check            compare sizes and hashes of what is here

They lie in $LIGHTNING_CFG_ASSETS, otherwise in ~/.cache/lightning_cfg/assets. Nothing is downloaded
unasked: without a network, put the files there by hand. The Python of `dinov2_code` is Meta's, and
is executed only when a DINOv2 network is built.

This module imports nothing heavy (no torch, and so not `files`): a table should come at once.
"""

import argparse
import contextlib
import difflib
import hashlib
import http.client
import json
import os
import re
import shutil
import stat
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path, PurePosixPath

from lightning_cfg import __version__
from lightning_cfg.errors import UserError

COMMAND = "python -m lightning_cfg.assets"
CHUNK = 2**20  # bytes that are read at a time, at most
TRANSIENT = (408, 429, 500, 502, 503, 504)  # of a busy server: worth asking again


@dataclass(frozen=True)
class Asset:
    """One file: its name here, its file name, and what is known of it.

    size     bytes, None where not known with certainty
    sha256   hex, None where not known: then that of the first download is recorded beside the file
    A zip is code: it is unpacked beside, into the folder of its name without ".zip".
    """

    name: str
    file: str
    url: str
    size: int | None
    sha256: str | None
    needed_by: str
    licence: str


META = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14"
DINOV2_COMMIT = "7764ea0f912e53c92e82eb78a2a1631e92725fc8"
EDM = "https://nvlabs-fi-cdn.nvidia.com/edm/fid-refs"

# Of these only the Inception file publishes (the head of) its hash, in its name. The other hashes
# and sizes are those which many independent projects have written down for the same addresses.
# GitHub does not promise that a commit's zip keeps its bytes: should its hash change one day, a
# clone of the same commit does as well, by its path.
ASSETS = {
    asset.name: asset
    for asset in (
        Asset(
            name="inception",
            file="weights-inception-2015-12-05-6726825d.pth",
            url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
            "weights-inception-2015-12-05-6726825d.pth",
            size=95_628_359,
            sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
            needed_by="FID, KID, Inception score; precision and recall in Inception's features",
            licence="Apache-2.0",
        ),
        Asset(
            name="dinov2",
            file="dinov2_vitl14_pretrain.pth",
            url=f"{META}/dinov2_vitl14_pretrain.pth",
            size=1_217_586_395,
            sha256="d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
            needed_by="FD_DINOv2 (with dinov2_code)",
            licence="Apache-2.0",
        ),
        Asset(
            name="dinov2_registers",
            file="dinov2_vitl14_reg4_pretrain.pth",
            url=f"{META}/dinov2_vitl14_reg4_pretrain.pth",
            size=1_217_607_321,
            sha256="36e4deffbaef061a2576705b0c36f93621e2ae20bf6274694821b0b492551b51",
            needed_by="neighbours by DINOv2's CLS and patch mean (with dinov2_code)",
            licence="Apache-2.0",
        ),
        Asset(
            name="dinov2_code",
            file=f"dinov2-{DINOV2_COMMIT}.zip",
            url=f"https://github.com/facebookresearch/dinov2/archive/{DINOV2_COMMIT}.zip",
            size=3_001_681,
            sha256="04276715cddb29d45d05bff3a6fc132224dc27749b279ac98ad2ce4620e20d48",
            needed_by="dinov2, dinov2_registers: their networks, Python that is executed",
            licence="Apache-2.0; what it holds for Cell-DINO is CC BY-NC",
        ),
        *(
            Asset(
                name=name,
                file=f"{file}.npz",
                url=f"{EDM}/{file}.npz",
                size=None,
                sha256=None,
                needed_by=f"FID against EDM's statistics of {of}",
                licence="CC BY-NC-SA 4.0",
            )
            for name, file, of in (
                ("edm_cifar10", "cifar10-32x32", "CIFAR-10"),
                ("edm_imagenet64", "imagenet-64x64", "ImageNet at 64x64"),
                ("edm_ffhq64", "ffhq-64x64", "FFHQ at 64x64"),
                ("edm_afhqv2", "afhqv2-64x64", "AFHQv2 at 64x64"),
            )
        ),
    )
}


def folder() -> Path:
    """Where the files lie: $LIGHTNING_CFG_ASSETS, otherwise ~/.cache/lightning_cfg/assets."""
    if chosen := os.environ.get("LIGHTNING_CFG_ASSETS"):
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "lightning_cfg" / "assets"


def find(name: str, path: str | None = None) -> Path:
    """The file of that name, or the one at `path`; of a zip of code the unpacked folder.

    Downloads nothing. Raises UserError, which says how to get it, where it is absent or has not
    its size. Hashes are compared by `fetch` and `check`; here only before code is unpacked.
    """
    asset = _asset(name)
    if path is not None:
        given = Path(path).expanduser()
        if not (given.is_dir() if _is_code(asset) else given.is_file()):
            raise UserError(f"{name}: {path}: no such {'folder' if _is_code(asset) else 'file'}")
        return given
    file, fetching = _place(asset), f"`{COMMAND} fetch {name}`"
    unpacked = file.with_suffix("")
    if _is_code(asset) and unpacked.is_dir():
        return unpacked
    if not file.is_file():
        raise UserError(
            f"{name} is not here: {fetching} downloads {asset.file} into {file.parent};"
            " or give the path of your own"
        )
    size = file.stat().st_size
    if asset.size not in (None, size):
        raise UserError(
            f"{name}: {file} has {size:,} bytes, not {asset.size:,}: {fetching} replaces it"
        )
    if not _is_code(asset):
        return file
    if fault := _fault(asset, file):  # put there by hand, perhaps, and it will be executed
        raise UserError(f"{name}: {file} has {fault}: {fetching} replaces it")
    return _unpack(file)


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
    asset = _asset(name)
    file = _place(asset)
    if file.is_file():
        fault = _fault(asset, file)
        if fault is None:
            if _is_code(asset) and _altered(file):
                shutil.rmtree(file.with_suffix(""))  # and so it is unpacked again
            new = _record(asset, file)
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
    if fault := _fault(asset, part):
        part.unlink()
        note.unlink(missing_ok=True)
        raise _failed(asset, f"what came has {fault}, and was removed")
    with _writing(asset):
        if _is_code(asset):
            shutil.rmtree(file.with_suffix(""), ignore_errors=True)  # of another zip
        os.replace(part, file)
        note.unlink(missing_ok=True)
        _record(asset, file)
    found = find(name)
    say(f"{name}: fetched, {file.stat().st_size:,} bytes: {found}")
    return found


def _asset(name: str) -> Asset:
    if name not in ASSETS:
        close = difflib.get_close_matches(name, ASSETS, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(ASSETS)}"
        raise UserError(f"no asset is named {name!r}; {hint}")
    return ASSETS[name]


def _place(asset: Asset) -> Path:
    return folder() / asset.file


def _is_code(asset: Asset) -> bool:
    return asset.file.endswith(".zip")


def _failed(asset: Asset, reason: str) -> UserError:
    return UserError(
        f"{asset.name}: {asset.url} could not be fetched: {reason};"
        f" try again, or put the file at {_place(asset)}"
    )


@contextlib.contextmanager
def _writing(asset: Asset) -> Iterator[None]:
    """OSErrors of the disk (full, not writable) become UserErrors; those outside are the net's."""
    try:
        yield
    except OSError as error:
        raise _failed(asset, f"it could not be written ({error})") from error


# What is right


def _fault(asset: Asset, file: Path) -> str | None:
    """What is wrong with a whole file, to follow "it has"; None where nothing is."""
    size = file.stat().st_size
    if asset.size not in (None, size):
        return f"{size:,} bytes, not {asset.size:,}"
    if asset.file.endswith((".zip", ".npz")) and not zipfile.is_zipfile(file):
        return "no archive in it (the page of a proxy or a login?)"
    expected, recorded = asset.sha256, _recorded(asset)
    if expected is None and recorded is None:
        return None
    if (found := _sha256(file)) == (expected or recorded):
        return None
    first = "" if expected else f", which {_record_of(asset)} holds of the first download"
    return f"sha256 {found}, not {expected or recorded}{first}"


def _sha256(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _record_of(asset: Asset) -> Path:
    return folder() / f"{asset.file}.sha256"


def _recorded(asset: Asset) -> str | None:
    """The hash of the first download, where none is published."""
    record = _record_of(asset)
    words = record.read_text().split() if asset.sha256 is None and record.is_file() else []
    return words[0] if words else None


def _record(asset: Asset, file: Path) -> bool:
    """Write down the file's hash where there is none to compare with; says whether it did."""
    if asset.sha256 or _recorded(asset):
        return False
    _write_text(_record_of(asset), f"{_sha256(file)}  {file.name}\n")  # as sha256sum -c reads it
    return True


def _write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# Downloading


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
                _write_text(note, json.dumps({"url": asset.url, **said}))
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


# Code


def _unpack(archive: Path) -> Path:
    """Unpack NAME.zip into the folder NAME beside it, whole or not at all; returns the folder.

    Raises UserError where it holds a link, or anything outside of its own folder NAME.
    """
    unpacked = archive.with_suffix("")
    temporary = unpacked.with_name(f".{unpacked.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process with the same number
    try:
        with zipfile.ZipFile(archive) as file:
            for member in file.infolist():
                parts = PurePosixPath(member.filename).parts
                if parts[:1] != (unpacked.name,) or ".." in parts:
                    what = f"{member.filename!r}, which is not in {unpacked.name}/"
                elif stat.S_ISLNK(member.external_attr >> 16):
                    what = f"{member.filename!r}, a link"
                else:
                    continue
                raise UserError(f"{archive} is not unpacked: it holds {what}")
            file.extractall(temporary)
        os.replace(temporary / unpacked.name, unpacked)
    except (OSError, zipfile.BadZipFile) as error:
        if not unpacked.is_dir():  # it is if another process was faster
            raise UserError(f"{archive} could not be unpacked: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return unpacked


def _altered(archive: Path) -> Path | None:
    """The first file of the unpacked folder that is not as in the zip; None where all are."""
    if not archive.with_suffix("").is_dir():
        return None
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            if member.is_dir():
                continue
            unpacked = archive.parent / member.filename
            if not unpacked.is_file() or unpacked.read_bytes() != file.read(member):
                return unpacked
    return None


# The command line


def main(words: list[str]) -> None:
    """Run from the command line: status 2 for a user's mistake, 1 where `check` finds a fault."""
    try:
        arguments = _arguments(words)
        if arguments.command == "fetch":
            _fetch_all(arguments.names)
        elif arguments.command == "check":
            _check()
        else:
            print(_table())
    except (UserError, OSError) as error:
        _tell(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        _tell("interrupted")
        sys.exit(130)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message} (`{COMMAND} --help`)")


def _arguments(words: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog=COMMAND,
        description="The weight files that feature extractors need. Without a command: a table.",
        epilog=f"They lie in {folder()}; the variable LIGHTNING_CFG_ASSETS names another folder.",
    )
    commands = parser.add_subparsers(dest="command", metavar="{fetch,check}")
    fetching = commands.add_parser("fetch", help="download files, going on where it was cut off")
    fetching.add_argument("names", nargs="+", metavar="NAME", help=f"all, {', '.join(ASSETS)}")
    commands.add_parser("check", help="compare sizes and hashes of the files that are here")
    return parser.parse_args(words)


def _tell(message: object) -> None:
    print(f"lightning_cfg: {' '.join(str(message).split())}", file=sys.stderr)


def _fetch_all(names: list[str]) -> None:
    """Fetch each; one that fails does not keep the others."""
    if "all" in names:
        names = list(ASSETS)
    for name in names:
        _asset(name)  # a wrong name answers before a download of an hour
    failed = False
    for name in dict.fromkeys(names):
        try:
            fetch(name)
        except UserError as error:
            _tell(f"error: {error}")
            failed = True
    if failed:
        sys.exit(2)


def _check() -> None:
    """Compare everything that is here, a line each; status 1 where something is wrong."""
    wrong = []
    for asset in ASSETS.values():
        file = _place(asset)
        if not file.is_file():
            print(f"{asset.name}: {_state(asset)}")
        elif fault := _fault(asset, file):
            wrong.append(asset.name)
            print(f"{asset.name}: WRONG: {file} has {fault}")
        elif _is_code(asset) and (altered := _altered(file)):
            wrong.append(asset.name)
            print(f"{asset.name}: WRONG: {altered} is not as in its zip")
        elif asset.sha256 or _recorded(asset):
            print(f"{asset.name}: right: {file}")
        else:
            print(f"{asset.name}: here, with no hash to compare with: {file}")
    if wrong:
        _tell(f"{len(wrong)} wrong: {', '.join(wrong)}; `{COMMAND} fetch NAME` replaces a file")
        sys.exit(1)


def _table() -> str:
    """Every file in a row, then what is known of each."""
    head = ("name", "size", "here", "needed by")
    rows = [
        (asset.name, f"{asset.size:,}" if asset.size else "?", _state(asset), asset.needed_by)
        for asset in ASSETS.values()
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(3)]
    lines = [
        f"{name:{widths[0]}}  {size:>{widths[1]}}  {state:{widths[2]}}  {needed_by}"
        for name, size, state, needed_by in (head, *rows)
    ]
    lines.append(f"\nSizes in bytes. `{COMMAND} fetch NAME` downloads one, `fetch all` every one.")
    for asset in ASSETS.values():
        unknown = f"not published; recorded {_recorded(asset) or 'when fetched'}"
        lines += [
            f"\n{asset.name}",
            f"  from     {asset.url}",
            f"  folder   {folder()}",
            f"  file     {asset.file}",
            f"  sha256   {asset.sha256 or unknown}",
            f"  licence  {asset.licence}",
        ]
    return "\n".join(lines)


def _state(asset: Asset) -> str:
    """Whether it is here, and whether its size fits."""
    file = _place(asset)
    part = file.with_name(f"{file.name}.part")
    if file.is_file():
        size = file.stat().st_size
        if asset.size is None:
            return f"yes, {size:,}"
        return "yes, size right" if size == asset.size else f"WRONG SIZE {size:,}"
    if _is_code(asset) and file.with_suffix("").is_dir():
        return "unpacked, zip gone"
    return f"no, {part.stat().st_size:,} so far" if part.is_file() else "no"
