"""Weight files against a server of our own, which can be as unreliable as a real one."""

import contextlib
import dataclasses
import hashlib
import json
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest

from lightning_cfg.cli import main_of
from lightning_cfg.errors import UserError
from lightning_cfg.weights import download, store
from lightning_cfg.weights.catalogue import ASSETS, Asset
from lightning_cfg.weights.store import find, folder

BODY = bytes(range(256)) * 4000
HALF = len(BODY) // 2


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def halves(data: bytes) -> tuple[bytes, bytes]:
    return data[: len(data) // 2], data[len(data) // 2 :]


class Site:
    """What the server has and does.

    faults   of the next requests, one each: "cut" or "stall" half way, "silence", or a status
    chunked  whether it sends no length, as GitHub does for the zip of a commit
    log      of each request the Range it asked for, and how many bytes it was sent
    """

    def __init__(self) -> None:
        self.body, self.etag, self.modified = BODY, '"1"', None
        self.ranges, self.chunked = True, False
        self.faults: list[str | int] = []
        self.log: list[tuple[str | None, int]] = []
        self.closing = threading.Event()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers["Range"]
        fault = self.faults.pop(0) if self.faults else None
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.ranges else 0
        if start and start >= len(self.body):
            fault = 416
        if isinstance(fault, int):
            self.log.append((wanted, 0))
            request.send_error(fault)
            return
        if fault == "silence":
            self.log.append((wanted, 0))
            self.closing.wait(30)
            return
        rest = self.body[start:]
        send = rest[: len(rest) // 2] if fault else rest
        self.log.append((wanted, len(send)))
        request.send_response(206 if start else 200)
        if start:
            last = len(self.body) - 1
            request.send_header("Content-Range", f"bytes {start}-{last}/{len(self.body)}")
        if self.chunked:
            request.send_header("Transfer-Encoding", "chunked")
        else:
            request.send_header("Content-Length", str(len(rest)))
        for name, value in (("ETag", self.etag), ("Last-Modified", self.modified)):
            if value:
                request.send_header(name, value)
        request.end_headers()
        if self.chunked:
            send = b"".join(b"%x\r\n%b\r\n" % (len(half), half) for half in halves(send))
            send += b"" if fault else b"0\r\n\r\n"
        request.wfile.write(send)
        if fault == "stall":
            self.closing.wait(30)


@pytest.fixture
def site(monkeypatch, tmp_path) -> Iterator[Site]:
    """The server, and three assets of it: `file`; `archive` and `code`, whose hash is not known."""
    made = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(ConnectionError):  # of a client that has heard enough
                made.answer(self)

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    monkeypatch.setenv("LIGHTNING_CFG_ASSETS", str(tmp_path / "assets"))
    monkeypatch.setenv("no_proxy", "*")
    url = f"http://127.0.0.1:{server.server_port}"
    known = [
        Asset("file", "w.pth", f"{url}/w", len(BODY), sha256(BODY), "FID", "MIT"),
        Asset("archive", "a.npz", f"{url}/a", None, None, "KID", "CC0"),
        Asset("code", "code-1.zip", f"{url}/c", None, None, "DINO", "Apache"),
    ]
    for name in list(ASSETS):
        monkeypatch.delitem(ASSETS, name)
    for asset in known:
        monkeypatch.setitem(ASSETS, asset.name, asset)
    yield made
    made.closing.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def cli(monkeypatch, capsys) -> Callable[..., SimpleNamespace]:
    """The command line: its status, out and err."""

    def run(*words: str) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["assets", *words])
        capsys.readouterr()
        try:
            main_of("assets")
        except SystemExit as stop:
            status = stop.code or 0
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return SimpleNamespace(status=status, out=out, err=err)

    return run


def fetch(name: str = "file", **settings) -> Path:
    return download.fetch(name, **{"timeout": 0.3, "pause": 0.0, **settings})


def change(name: str, **fields) -> None:
    ASSETS[name] = dataclasses.replace(ASSETS[name], **fields)


def here() -> list[str]:
    return sorted(path.name for path in folder().iterdir())


def leave_half(site: Site) -> None:
    """A download that is cut off, and then given up."""
    site.faults = ["cut", 404]
    with pytest.raises(UserError, match="404"):
        fetch()
    assert here() == ["w.pth.part", "w.pth.part.json"]
    assert (folder() / "w.pth.part").read_bytes() == BODY[:HALF]
    site.log.clear()


def archive(**members: str) -> bytes:
    made = BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        for name, text in members.items():
            file.writestr(name, text)
    return made.getvalue()


CODE = archive(**{"code-1/": "", "code-1/hubconf.py": "a = 1\n", "code-1/net/vit.py": "b = 2\n"})


# Downloading


def test_a_download_is_whole_and_is_not_done_twice(site, capsys):
    path = fetch()
    assert path == folder() / "w.pth" == find("file")
    assert path.read_bytes() == BODY
    assert here() == ["w.pth"]
    assert site.log == [(None, len(BODY))]
    assert "fetched" in capsys.readouterr().out
    assert fetch() == path
    assert len(site.log) == 1
    assert "here already, sha256 right" in capsys.readouterr().out


def test_a_part_is_gone_on_with_by_asking_for_the_rest_only(site):
    leave_half(site)
    assert fetch().read_bytes() == BODY
    assert site.log == [(f"bytes={HALF}-", len(BODY) - HALF)]
    assert here() == ["w.pth"]


def test_a_server_that_knows_no_ranges_sends_it_all_again(site):
    leave_half(site)
    site.ranges = False
    assert fetch().read_bytes() == BODY
    assert site.log == [(f"bytes={HALF}-", len(BODY))]


@pytest.mark.parametrize("mark", ["etag", "modified", "length", "url", "note"])
def test_a_part_of_another_version_is_not_gone_on_with(site, mark):
    site.etag, site.modified = None, None
    if mark in ("etag", "modified"):
        setattr(site, mark, "of before")
    change("file", size=None)
    leave_half(site)
    site.body = BODY[::-1] + (b"more" if mark == "length" else b"")
    if mark in ("etag", "modified"):
        setattr(site, mark, "of now")
    if mark == "url":
        change("file", url=f"{ASSETS['file'].url}/of/now")
    if mark == "note":
        (folder() / "w.pth.part.json").write_text("{")
    change("file", sha256=sha256(site.body))
    assert fetch().read_bytes() == site.body
    assert site.log[-1] == (None, len(site.body))
    assert here() == ["w.pth"]


def test_a_part_longer_than_the_file_now_is_begins_anew(site):
    change("file", size=None)
    leave_half(site)
    site.body = b"short"
    change("file", sha256=sha256(b"short"))
    assert fetch().read_bytes() == b"short"
    assert site.log == [(f"bytes={HALF}-", 0), (None, 5)]


def test_a_part_that_is_complete_needs_no_byte_more(site, monkeypatch):
    def killed(file: Path) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "sha256", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch()
    assert here() == ["w.pth.part", "w.pth.part.json"]
    assert fetch().read_bytes() == BODY
    assert len(site.log) == 1


@pytest.mark.parametrize("fault", ["cut", "stall"])
def test_a_lost_connection_is_taken_up_where_it_was(site, fault):
    site.faults = [fault, 503, fault]
    assert fetch().read_bytes() == BODY
    rest = len(BODY) - HALF
    at = HALF + rest // 2
    assert site.log == [
        (None, HALF),
        (f"bytes={HALF}-", 0),
        (f"bytes={HALF}-", rest // 2),
        (f"bytes={at}-", len(BODY) - at),
    ]


def test_a_network_that_goes_and_comes_back(site, monkeypatch):
    site.faults, urlopen, calls = ["cut"], urllib.request.urlopen, []

    def unreliable(*args, **kwargs):
        calls.append(args)
        if len(calls) in (2, 3):
            raise urllib.error.URLError(socket.gaierror(-2, "Name or service not known"))
        return urlopen(*args, **kwargs)

    monkeypatch.setattr(urllib.request, "urlopen", unreliable)
    assert fetch().read_bytes() == BODY
    assert len(calls) == 4


def test_an_answer_that_tells_no_length(site):
    site.chunked, site.faults = True, ["cut"]
    assert fetch().read_bytes() == BODY
    assert site.log == [(None, HALF), (f"bytes={HALF}-", len(BODY) - HALF)]
    (folder() / "w.pth").unlink()
    change("file", size=None, sha256=None)
    site.ranges, site.faults = False, ["stall", "cut"]
    assert fetch().read_bytes() == BODY
    assert site.log[-1] == (f"bytes={HALF}-", len(BODY))


@pytest.mark.parametrize(
    "fault, reason, requests",
    [  # the first one that was cut got further, and so does not count
        ("cut", "ended after 512,000 of 1,024,000 bytes", 4),
        ("stall", "nothing came for 0.1 s", 4),
        ("silence", "nothing came for 0.1 s", 3),
        (503, "HTTP 503", 3),
    ],
)
def test_connections_that_get_no_further_end(site, fault, reason, requests):
    site.faults, site.ranges = [fault] * 20, False
    with pytest.raises(UserError, match=reason):
        fetch(retries=2, timeout=0.1)
    assert len(site.log) == requests


@pytest.mark.parametrize("number, status", [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_killed_download_is_gone_on_with(site, number, status):
    site.faults = ["stall"]
    code = f"""
import signal, sys
from lightning_cfg.cli import main_of
from lightning_cfg.weights.catalogue import ASSETS, Asset
signal.signal(signal.SIGINT, signal.default_int_handler)  # even if the tests run in a background
ASSETS["file"] = Asset(**{dataclasses.asdict(ASSETS["file"])})
main_of("assets")
"""
    command = [sys.executable, "-c", code, "fetch", "file"]
    part = folder() / "w.pth.part"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 20
        while not (part.is_file() and part.stat().st_size == HALF):
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(number)
        err = process.communicate(timeout=20)[1]
    assert process.returncode == status
    assert err == ("lightning_cfg: interrupted\n" if status == 130 else "")
    assert fetch().read_bytes() == BODY
    assert site.log == [(None, HALF), (f"bytes={HALF}-", len(BODY) - HALF)]


def test_two_processes_do_not_fill_one_file(site):
    folder().mkdir(parents=True)
    part = folder() / "w.pth.part"
    with download._held(ASSETS["file"], part):
        with pytest.raises(UserError, match=r"another process \(.*w.pth.part is held\)"):
            fetch()
    assert site.log == []
    assert fetch().read_bytes() == BODY


def test_a_part_that_another_process_has_just_finished_is_left_alone(site, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    whole = folder() / "w.pth"

    def finished(file, _) -> None:
        (folder() / "w.pth.part").rename(whole)
        whole.write_bytes(BODY)

    monkeypatch.setattr(fcntl, "flock", finished)
    with pytest.raises(UserError, match="another process"):
        fetch()
    assert whole.read_bytes() == BODY
    assert fetch() == whole


def test_progress_is_shown_on_a_terminal_only(site, monkeypatch, capsys):
    fetch()
    assert capsys.readouterr().err == ""
    (folder() / "w.pth").unlink()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fetch()
    assert "file: 100%" in capsys.readouterr().err


# What cannot be had, or is not what it should be


def test_a_wrong_hash_is_named_with_the_right_one(site):
    site.body = BODY[:-1] + b"!"
    with pytest.raises(UserError) as error:
        fetch()
    for part in (sha256(site.body), sha256(BODY), "removed"):
        assert part in str(error.value)
    assert here() == []


def test_a_wrong_size_is_not_even_downloaded(site):
    site.body = BODY + b"!"
    with pytest.raises(UserError, match=r"1,024,001 bytes there, not 1,024,000"):
        fetch()
    assert here() == []


def test_a_wrong_size_is_seen_where_the_server_tells_none(site):
    change("file", size=len(BODY) + 1)
    site.etag = None
    original = site.answer

    def untold(request):
        request.send_header = lambda name, value: None
        original(request)

    site.answer = untold
    with pytest.raises(UserError, match=r"has 1,024,000 bytes, not 1,024,001, and was removed"):
        fetch()
    assert here() == []
    change("file", size=len(BODY))
    assert fetch().read_bytes() == BODY


def test_an_http_error_names_the_address_and_the_place(site):
    site.faults = [404]
    with pytest.raises(UserError) as error:
        fetch()
    asset, message = ASSETS["file"], str(error.value)
    assert f"{asset.url} could not be fetched: HTTP 404 Not Found;" in message
    assert f"or put the file at {folder() / 'w.pth'}" in message
    assert "\n" not in message
    assert len(site.log) == 1
    assert here() == []


def test_no_network_is_told_at_once(site, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waited"))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        change("file", url=f"http://127.0.0.1:{unused.getsockname()[1]}/w")
        with pytest.raises(UserError, match=r"refused; try again, or put the file at .*w.pth$"):
            fetch()
    assert here() == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told(site):
    folder().mkdir(parents=True)
    (folder() / "w.pth.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"/w could not be fetched: .*No space left.*; .*put the"):
        fetch()
    assert len(site.log) == 1


def test_a_disk_too_small_is_told_before_the_download(site, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"1,024,000 bytes are to come and 1,000 are free"):
        fetch()
    assert here() == []


def test_a_folder_that_cannot_be_is_told(site, tmp_path):
    (tmp_path / "assets").write_text("a file")
    with pytest.raises(UserError, match=r"could not be written \(.*assets"):
        fetch()


def test_a_damaged_file_is_replaced(site, capsys):
    fetch().write_bytes(BODY[:-1] + b"!")
    fetch()
    assert sha256(BODY[:-1] + b"!") in capsys.readouterr().out
    assert find("file").read_bytes() == BODY
    assert len(site.log) == 2


def test_where_no_hash_is_published_the_first_one_counts(site, cli):
    site.body = archive(mu="1")
    path, record = fetch("archive"), folder() / "a.npz.sha256"
    assert record.read_text() == f"{sha256(site.body)}  a.npz\n"
    assert cli("check").status == 0
    path.write_bytes(archive(mu="2"))
    checked = cli("check")
    assert checked.status == 1
    assert f"archive: WRONG: {path} has sha256 {sha256(archive(mu='2'))}" in checked.out
    site.body = archive(mu="3")  # the publisher's has changed: not silently
    with pytest.raises(UserError, match=r"not \w{64}, which .*a.npz.sha256 holds"):
        fetch("archive")
    record.unlink()
    path.unlink()
    assert fetch("archive").read_bytes() == site.body


def test_a_file_put_there_by_hand_gets_its_hash_recorded_when_fetched(site, cli, capsys):
    folder().mkdir(parents=True)
    (folder() / "a.npz").write_bytes(archive(mu="1"))
    checked = cli("check")
    assert "archive: here, with no hash to compare with" in checked.out
    assert checked.status == 0
    fetch("archive")
    assert "recorded now" in capsys.readouterr().out
    fetch("archive")
    assert "sha256 right" in capsys.readouterr().out
    assert site.log == []
    assert "archive: right" in cli("check").out


def test_a_login_page_is_no_archive(site):
    site.body = b"<html>log in first</html>"
    with pytest.raises(UserError, match="no archive"):
        fetch("archive")
    assert here() == []


# Code


def test_code_is_unpacked(site):
    site.body = CODE
    unpacked = fetch("code")
    assert unpacked == folder() / "code-1" == find("code")
    assert (unpacked / "net" / "vit.py").read_text() == "b = 2\n"
    assert here() == ["code-1", "code-1.zip", "code-1.zip.sha256"]


def evil(name: str, *, link: bool = False) -> bytes:
    made = BytesIO(CODE)
    with zipfile.ZipFile(made, "a") as file:
        member = zipfile.ZipInfo(name)
        member.external_attr = ((stat.S_IFLNK if link else stat.S_IFREG) | 0o777) << 16
        file.writestr(member, "/etc")
    return made.getvalue()


@pytest.mark.parametrize(
    "name, link, reason",
    [
        ("../outside.py", False, "not in code-1/"),
        ("code-1/../../outside.py", False, "not in code-1/"),
        ("/outside.py", False, "not in code-1/"),
        ("another/outside.py", False, "not in code-1/"),
        ("code-1/outside", True, "a link"),
    ],
)
def test_an_archive_that_reaches_outside_is_not_unpacked(site, tmp_path, name, link, reason):
    site.body = evil(name, link=link)
    with pytest.raises(UserError, match=f"{re.escape(repr(name))}.*{reason}"):
        fetch("code")
    assert here() == ["code-1.zip", "code-1.zip.sha256"]
    assert list(tmp_path.iterdir()) == [folder()]
    site.body = evil("code-1/inside.py")  # the same but for its place is fine
    (folder() / "code-1.zip").unlink()
    (folder() / "code-1.zip.sha256").unlink()
    assert (fetch("code") / "inside.py").read_text() == "/etc"


def test_code_put_there_by_hand_is_unpacked_if_it_is_the_right_one(site, cli):
    change("code", sha256=sha256(CODE))
    folder().mkdir(parents=True)
    (folder() / "code-1.zip").write_bytes(evil("code-1/more.py"))
    with pytest.raises(UserError, match=f"not {sha256(CODE)}"):
        find("code")
    assert here() == ["code-1.zip"]
    (folder() / "code-1.zip").write_bytes(CODE)
    assert "code: right" in cli("check").out
    assert here() == ["code-1.zip"]
    assert (find("code") / "hubconf.py").read_text() == "a = 1\n"
    assert site.log == []


def test_changed_code_is_found_and_unpacked_again(site, cli):
    site.body = CODE
    changed = fetch("code") / "net" / "vit.py"
    (changed.parent / "__pycache__").mkdir()  # what Python adds is no change
    assert cli("check").status == 0
    changed.write_text("b = 3\n")
    checked = cli("check")
    assert checked.status == 1
    assert f"code: WRONG: {changed} is not as in its zip" in checked.out
    fetch("code")
    assert changed.read_text() == "b = 2\n"
    assert len(site.log) == 1
    changed.unlink()
    assert cli("check").status == 1
    for name in ("code-1.zip", "code-1.zip.sha256"):
        (folder() / name).unlink()
    site.body = archive(**{"code-1/hubconf.py": "a = 4\n"})
    assert [path.name for path in fetch("code").iterdir()] == ["hubconf.py"]
    assert cli("check").status == 0


# Finding


def test_an_absent_file_is_told_with_what_to_do(site, tmp_path):
    with pytest.raises(UserError) as error:
        find("file")
    message = str(error.value)
    for part in ("w.pth", str(tmp_path / "assets"), "`python -m lightning_cfg.assets fetch file`"):
        assert part in message
    assert "\n" not in message
    with pytest.raises(UserError, match=r"`python -m lightning_cfg.assets fetch code`"):
        find("code")


def test_a_path_goes_before_the_folder(site, tmp_path):
    own = tmp_path / "own.pth"
    with pytest.raises(UserError, match=r"file: .*own.pth: no such file"):
        find("file", str(own))
    own.write_bytes(b"mine")
    assert find("file", str(own)) == own
    with pytest.raises(UserError, match=r"code: .*own.pth: no such folder"):
        find("code", str(own))
    assert find("code", str(tmp_path)) == tmp_path


def test_a_truncated_file_is_not_found(site):
    fetch().write_bytes(BODY[:-1])
    with pytest.raises(UserError, match=r"has 1,023,999 bytes, not 1,024,000: .*fetch file"):
        find("file")


def test_the_folder_is_that_of_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LIGHTNING_CFG_ASSETS", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert folder() == tmp_path / ".cache" / "lightning_cfg" / "assets"
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert folder() == Path("/cache/lightning_cfg/assets")
    monkeypatch.setenv("LIGHTNING_CFG_ASSETS", "~/weights")
    assert folder() == tmp_path / "weights"


# The command line and the published assets


def test_the_table_says_what_is_here(site, cli):
    def state(name: str) -> str:
        return next(line for line in cli().out.splitlines() if line.startswith(f"{name} "))

    assert re.fullmatch(r"file +1,024,000  no +FID", state("file"))
    assert re.fullmatch(r"archive +\?  no +KID", state("archive"))
    assert "sha256   not published; recorded when fetched" in cli().out
    leave_half(site)
    assert "no, 512,000 so far" in state("file")
    fetch().write_bytes(BODY[:10])
    assert "WRONG SIZE 10 " in state("file")
    fetch()
    assert "yes, size right" in state("file")
    site.body = archive(mu="1")
    fetch("archive")
    assert f"yes, {len(site.body):,} " in state("archive")
    assert f"sha256   not published; recorded {sha256(site.body)}" in cli().out
    site.body = CODE
    fetch("code")
    (folder() / "code-1.zip").unlink()
    assert "unpacked, zip gone" in state("code")
    assert cli("check").status == 0


def test_fetch_from_the_command_line(site, cli):
    done = cli("fetch", "file", "file")
    assert done.status == 0
    assert done.out.count("fetched, 1,024,000 bytes") == 1
    assert done.err == ""
    assert len(site.log) == 1


def test_fetch_all_goes_on_after_one_that_fails(site, cli):
    site.faults, site.body = [404], CODE
    done = cli("fetch", "all")
    assert done.status == 2
    assert done.err.startswith("lightning_cfg: error: file: http")
    assert len(done.err.splitlines()) == 1
    assert "archive: fetched" in done.out
    assert "code: fetched" in done.out


@pytest.mark.parametrize(
    "words, message",
    [
        (("fetch", "file", "fiel"), "no asset is named 'fiel'; did you mean 'file'?"),
        (("fetch", "xyz"), "no asset is named 'xyz'; there are file, archive, code"),
        (("fetch",), "required: NAME"),
        (("ftech", "file"), "invalid choice: 'ftech'"),
        (("check", "file"), "unrecognized arguments: file"),
    ],
)
def test_mistakes_are_told_in_a_line(site, cli, words, message):
    done = cli(*words)
    assert done.status == 2
    assert re.fullmatch(f"lightning_cfg: error: .*{re.escape(message)}.*\n", done.err)
    assert site.log == []


def test_help(cli):
    done = cli("--help")
    assert done.status == 0
    assert "LIGHTNING_CFG_ASSETS" in done.out
    assert "dinov2_registers" in cli("fetch", "--help").out


def test_check_names_what_is_wrong(site, cli):
    assert cli("check").status == 0
    fetch()
    assert cli("check").out.startswith("file: right: ")
    (folder() / "w.pth").write_bytes(BODY[1:] + b"!")
    done = cli("check")
    assert done.status == 1
    assert done.err.startswith("lightning_cfg: 1 wrong: file; ")
    assert sha256(BODY) in done.out


def test_a_table_comes_without_torch(tmp_path):
    code = """
import sys
from lightning_cfg.verbs import assets
assets.main([])
print([module for module in ("torch", "numpy", "tqdm") if module in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for asset in ASSETS.values():
        assert re.search(rf"^{asset.name} +[\d,?]+  ", done.stdout, re.MULTILINE)
        for fact in (asset.url, asset.file, asset.licence, asset.needed_by, asset.sha256 or ""):
            assert fact in done.stdout


def test_the_published_assets_are_named_consistently():
    for name, asset in ASSETS.items():
        assert asset.name == name
        assert asset.url.startswith("https://")
        assert asset.sha256 is None or re.fullmatch("[0-9a-f]{64}", asset.sha256)
        assert asset.url.endswith(asset.file.removeprefix("dinov2-"))
    inception = ASSETS["inception"]
    assert inception.file.endswith(f"-{inception.sha256[:8]}.pth")
    published = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    assert inception.url == published.URL_INCEPTION_V3


def test_published_networks_are_no_part_of_all(site, cli, monkeypatch):
    """They are tens of gigabytes; a name fetches one, and records its hash."""
    net = Asset("net", "n.pkl", ASSETS["code"].url, None, None, "adopt", "CC", {})
    monkeypatch.setitem(ASSETS, "net", net)
    site.faults, site.body = [404, 404, 404], b"\x80\x04N."
    assert cli("fetch", "all").status == 2
    assert len(site.log) == 3  # the other three
    assert cli("fetch", "net").status == 0
    assert (folder() / "n.pkl.sha256").read_text() == f"{sha256(site.body)}  n.pkl\n"
    assert f"(CC)  {sha256(site.body)}" in cli().out
    (folder() / "n.pkl").write_bytes(b"\x80\x04M.")
    assert cli("check").status == 1
    site.body = b"\x80\x04K\x01."
    assert "of the first download" in cli("fetch", "net").err


@pytest.mark.parametrize("name", ["n.pkl", "n.pt"])
def test_a_page_is_no_network(site, cli, name, monkeypatch):
    net = Asset("net", name, ASSETS["file"].url, None, None, "adopt", "CC", {})
    monkeypatch.setitem(ASSETS, "net", net)
    site.body = b"<html>Please log in</html>"
    done = cli("fetch", "net")
    assert (done.status, done.err.count("no pickle and no file of torch in it")) == (2, 1)
    assert not (folder() / name).exists()


def test_the_published_networks_of_the_presets_are_all_there():
    """Those of the second paper's record, and one of each owner; their addresses."""
    weak = "edm2-img512-m-0268435-0.205"
    root = "https://nvlabs-fi-cdn.nvidia.com"
    assert ASSETS[weak].url == f"{root}/edm2/posthoc-reconstructions/{weak}.pkl"
    for name, address in {
        "edm2-img512-xxl-0939524-0.130": f"{root}/edm2/posthoc-reconstructions/",
        "edm2-img512-xs-uncond-2147483-0.015": f"{root}/edm2/posthoc-reconstructions/",
        "edm-imagenet-64x64-cond-adm": f"{root}/edm/pretrained/",
    }.items():
        assert ASSETS[name].url == f"{address}{name}.pkl"
    openai = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021"
    assert ASSETS["adm-256x256-diffusion-uncond"].url == f"{openai}/256x256_diffusion_uncond.pt"
    networks = [asset for asset in ASSETS.values() if asset.is_network]
    assert len({asset.file for asset in ASSETS.values()}) == len(ASSETS)
    assert all(asset.size is None and asset.sha256 is None for asset in networks)


def test_a_note_holds_what_the_first_answer_said(site):
    site.modified = "Fri, 27 Oct 2023 10:37:32 GMT"
    leave_half(site)
    note = json.loads((folder() / "w.pth.part.json").read_text())
    assert note == {
        "url": ASSETS["file"].url,
        "etag": '"1"',
        "modified": site.modified,
        "total": len(BODY),
    }
