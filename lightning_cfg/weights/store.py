"""Where weight files lie, whether they are what they should be, and how code is unpacked.

They lie in $LIGHTNING_CFG_ASSETS, otherwise in ~/.cache/lightning_cfg/assets. Without a network,
put the files there by hand. Imports nothing heavy: a table should come at once.
"""

import os
import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath

from lightning_cfg.errors import UserError
from lightning_cfg.runs.files import sha256, write_text
from lightning_cfg.weights.catalogue import Asset, asset_of

COMMAND = "python -m lightning_cfg.assets"


def folder() -> Path:
    """Where the files lie: $LIGHTNING_CFG_ASSETS, otherwise ~/.cache/lightning_cfg/assets."""
    if chosen := os.environ.get("LIGHTNING_CFG_ASSETS"):
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "lightning_cfg" / "assets"


def place(asset: Asset) -> Path:
    """Where its file lies, or would."""
    return folder() / asset.file


def find(name: str, path: str | None = None) -> Path:
    """The file of that name, or the one at `path`; of a zip of code the unpacked folder.

    Downloads nothing. Raises UserError, which says how to get it, where it is absent or has not
    its size. Hashes are compared by `fetch` and `check`; here only before code is unpacked.
    """
    asset = asset_of(name)
    if path is not None:
        given = Path(path).expanduser()
        if not (given.is_dir() if asset.is_code else given.is_file()):
            raise UserError(f"{name}: {path}: no such {'folder' if asset.is_code else 'file'}")
        return given
    file, fetching = place(asset), f"`{COMMAND} fetch {name}`"
    unpacked = file.with_suffix("")
    if asset.is_code and unpacked.is_dir():
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
    if not asset.is_code:
        return file
    if fault := fault_of(asset, file):  # put there by hand, perhaps, and it will be executed
        raise UserError(f"{name}: {file} has {fault}: {fetching} replaces it")
    return unpack(file)


def fault_of(asset: Asset, file: Path) -> str | None:
    """What is wrong with a whole file, to follow "it has"; None where nothing is."""
    size = file.stat().st_size
    if asset.size not in (None, size):
        return f"{size:,} bytes, not {asset.size:,}"
    if asset.file.endswith((".zip", ".npz")) and not zipfile.is_zipfile(file):
        return "no archive in it (the page of a proxy or a login?)"
    if asset.file.endswith((".pkl", ".pt")) and not _is_pickled(file):
        return "no pickle and no file of torch in it (the page of a proxy or a login?)"
    expected = asset.sha256 or recorded(asset)
    if expected is None or (found := sha256(file)) == expected:
        return None
    first = "" if asset.sha256 else f", which {_record_file(asset)} holds of the first download"
    return f"sha256 {found}, not {expected}{first}"


def _is_pickled(file: Path) -> bool:
    with open(file, "rb") as content:
        return content.read(2)[:1] == b"\x80" or zipfile.is_zipfile(file)


def _record_file(asset: Asset) -> Path:
    return folder() / f"{asset.file}.sha256"


def recorded(asset: Asset) -> str | None:
    """The hash of the first download, where none is published."""
    record = _record_file(asset)
    words = record.read_text().split() if asset.sha256 is None and record.is_file() else []
    return words[0] if words else None


def record(asset: Asset, file: Path) -> bool:
    """Write down the file's hash where there is none to compare with; says whether it did."""
    if asset.sha256 or recorded(asset):
        return False
    write_text(_record_file(asset), f"{sha256(file)}  {file.name}\n")  # as sha256sum -c reads it
    return True


def unpack(archive: Path) -> Path:
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


def altered(archive: Path) -> Path | None:
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
