"""What CI asks beside the tests: types that do not get worse, and no warnings of our own."""

import importlib.util
import json
import warnings

import pytest
from helpers import ROOT


@pytest.fixture
def check(tmp_path, monkeypatch):
    """The script's `main` where pyright finds these errors, and its file is in an own folder."""
    spec = importlib.util.spec_from_file_location("check_types", ROOT / ".ci/check_types.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "RECORDED", tmp_path / "errors.json")

    def run(*words: str, **errors: int) -> int:
        lines = {name: [f"{name}: {i}" for i in range(n)] for name, n in errors.items()}
        monkeypatch.setattr(script, "found", lambda: lines)
        return script.main(list(words))

    return run


def test_more_type_errors_than_recorded_fail(check, tmp_path, capsys):
    assert check("--write", data=3, nets=1) == 0
    assert json.loads((tmp_path / "errors.json").read_text()) == {"data": 3, "nets": 1}
    assert check(data=3, nets=1) == 0
    assert check(data=2, nets=2) == 1  # one folder's gain is no other one's
    assert check(data=3, nets=1, guidance=1) == 1  # a folder that had none
    capsys.readouterr()
    assert check(data=3) == 0
    assert "nets: 0 type errors, fewer than 1: record it" in capsys.readouterr().out


def test_the_errors_are_told(check, capsys):
    check("--write", data=1)
    check(data=2)
    out = capsys.readouterr().out
    assert "data: 0\ndata: 1\ndata: 2 type errors, more than 1\n" in out


def test_a_warning_that_a_line_of_the_package_calls_forth_is_an_error():
    with pytest.raises(FutureWarning, match="old"):
        warnings.warn_explicit("old", FutureWarning, "x.py", 1, module="lightning_cfg.diffusion.x")
    with pytest.warns(FutureWarning, match="old"):
        warnings.warn_explicit("old", FutureWarning, "x.py", 1, module="torch.nn")
