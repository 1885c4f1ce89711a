"""`assets`: weight files of feature extractors and published networks, and how they come here.

    python -m lightning_cfg.assets                  a table of all of them
    python -m lightning_cfg.assets fetch NAME ...   download them ("all": what extractors need)
    python -m lightning_cfg.assets check            compare sizes and hashes of what is here

They lie in $LIGHTNING_CFG_ASSETS, otherwise in ~/.cache/lightning_cfg/assets. Nothing is downloaded
unasked: without a network, put the files there by hand.
"""

import argparse
import sys
from typing import NoReturn

from lightning_cfg.errors import UserError, one_line
from lightning_cfg.weights.catalogue import ASSETS, Asset, asset_of, listed
from lightning_cfg.weights.download import fetch
from lightning_cfg.weights.store import COMMAND, altered, fault_of, folder, place, recorded


def main(words: list[str]) -> int:
    """Run from the command line; the status: 2 where a download failed, 1 where `check` is not met.

    Raises UserError for a mistake.
    """
    arguments = _arguments(words)
    try:
        if arguments.command == "fetch":
            return _fetch_all(arguments.names)
        if arguments.command == "check":
            return _check()
    except OSError as error:
        raise UserError(str(error)) from error
    print(_table())
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (`{COMMAND} --help`)")


def _arguments(words: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog=COMMAND,
        description="Weight files of feature extractors and published networks. Without a command: "
        "a table.",
        epilog=f"They lie in {folder()}; the variable LIGHTNING_CFG_ASSETS names another folder.",
    )
    commands = parser.add_subparsers(dest="command", metavar="{fetch,check}")
    fetching = commands.add_parser("fetch", help="download files, going on where it was cut off")
    fetching.add_argument(
        "names", nargs="+", metavar="NAME", help=f"all (but networks), {listed()}"
    )
    commands.add_parser("check", help="compare sizes and hashes of the files that are here")
    return parser.parse_args(words)


def _fetch_all(names: list[str]) -> int:
    """Fetch each; one that fails does not keep the others."""
    if "all" in names:
        names = [name for name, asset in ASSETS.items() if not asset.is_network]
    for name in names:
        asset_of(name)  # a wrong name answers before a download of an hour
    failed = False
    for name in dict.fromkeys(names):
        try:
            fetch(name)
        except UserError as error:
            print(f"lightning_cfg: error: {one_line(error)}", file=sys.stderr)
            failed = True
    return 2 if failed else 0


def _check() -> int:
    """Compare everything that is here, a line each; status 1 where something is wrong."""
    wrong = []
    for asset in ASSETS.values():
        file = place(asset)
        if not file.is_file():
            print(f"{asset.name}: {_state(asset)}")
        elif fault := fault_of(asset, file):
            wrong.append(asset.name)
            print(f"{asset.name}: WRONG: {file} has {fault}")
        elif asset.is_code and (changed := altered(file)):
            wrong.append(asset.name)
            print(f"{asset.name}: WRONG: {changed} is not as in its zip")
        elif asset.sha256 or recorded(asset):
            print(f"{asset.name}: right: {file}")
        else:
            print(f"{asset.name}: here, with no hash to compare with: {file}")
    if wrong:
        names = ", ".join(wrong)
        fetching = f"`{COMMAND} fetch NAME` replaces a file"
        print(f"lightning_cfg: {len(wrong)} wrong: {names}; {fetching}", file=sys.stderr)
    return 1 if wrong else 0


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
    how = f"`{COMMAND} fetch NAME` downloads one, `fetch all` every one that is no network."
    lines.append(f"\nSizes in bytes. {how}")
    for asset in ASSETS.values():
        if asset.is_network:
            continue
        unknown = f"not published; recorded {recorded(asset) or 'when fetched'}"
        lines += [
            f"\n{asset.name}",
            f"  from     {asset.url}",
            f"  folder   {folder()}",
            f"  file     {asset.file}",
            f"  sha256   {asset.sha256 or unknown}",
            f"  licence  {asset.licence}",
        ]
    networks = [asset for asset in ASSETS.values() if asset.is_network]
    if networks:
        lines.append("\nNetworks for `adopt`, whose owners state no hash; recorded when fetched")
    lines += [f"  {a.url}  ({a.licence})  {recorded(a) or ''}".rstrip() for a in networks]
    return "\n".join(lines)


def _state(asset: Asset) -> str:
    """Whether it is here, and whether its size fits."""
    file = place(asset)
    part = file.with_name(f"{file.name}.part")
    if file.is_file():
        size = file.stat().st_size
        if asset.size is None:
            return f"yes, {size:,}"
        return "yes, size right" if size == asset.size else f"WRONG SIZE {size:,}"
    if asset.is_code and file.with_suffix("").is_dir():
        return "unpacked, zip gone"
    return f"no, {part.stat().st_size:,} so far" if part.is_file() else "no"
