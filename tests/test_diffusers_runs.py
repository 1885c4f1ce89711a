"""`generate` of diffusers' folders, of prompts, and of a network of one's own, from a config."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lightning_cfg.data.prompts import Prompts
from lightning_cfg.errors import UserError
from lightning_cfg.guidance.gfcg import confusion
from lightning_cfg.runs.names import SAMPLES
from lightning_cfg.runs.tensors import load_tensors
from lightning_cfg.verbs.generate import generate

EULER = {"name": "euler", "steps": 4, "levels": "model"}
CFG = {"name": "classifier_free", "scale": 3.0}


def x_of(run: Path) -> Tensor:
    return load_tensors(run / SAMPLES, "x")["x"]


# Networks of one's own


class Mine(nn.Module):
    """The denoiser of N(m_c, 1), m_c = c, and of N(-5, 1) without a class."""

    def __init__(self, *, classes: int = 3, shape: int = 2):
        super().__init__()
        self.num_classes, self.shape = classes, (shape,)
        self.register_buffer("m", torch.tensor([*range(classes), -5.0]))

    def forward(self, x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        share = (1 / (1 + sigma**2)).to(x)[:, None]
        return share * x + (1 - share) * self.m[c].to(x)[:, None]


class Judge(nn.Module):
    classifies = True

    def __init__(self, *, classes: int = 3):
        super().__init__()
        self.num_classes, self.shape = classes, (2,)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return -((x.mean(1, keepdim=True) - torch.arange(self.num_classes).to(x)) ** 2)


class Headless(nn.Module):
    shape, num_classes = (2,), 3


def named(what: type, **keys: object) -> dict:
    return {"name": f"{__name__}.{what.__name__}", **keys}


def test_a_denoiser_of_ones_own_is_guided(tmp_path):
    """Without noise left, a sample of class c at scale w is of N(c + (w - 1) (c + 5), 1)."""
    models = {"model": named(Mine)}
    heun = {"name": "heun", "steps": 40, "sigma_max": 300.0, "sigma_min": 0.001}
    run = generate(models=models, guidance={**CFG, "scale": 2.0}, sampler=heun, n=2000, seed=0,
                   class_label=1, run_dir=str(tmp_path / "run"))  # fmt: skip
    x = x_of(run)
    assert x.mean().item() == pytest.approx(1 + 1 * (1 + 5), abs=0.1)
    assert x.std().item() == pytest.approx(1, abs=0.05)


def test_with_a_classifier_of_ones_own(tmp_path):
    models = {"model": named(Mine), "classifier": named(Judge)}
    given = {"sampler": {"name": "euler", "steps": 8, "sigma_max": 10.0}, "n": 20}
    guided = generate(models=models, guidance={"name": "gfcg", "scale": 3.0}, **given,
                      run_dir=str(tmp_path / "a"))  # fmt: skip
    plain = generate(models={"model": named(Mine)}, guidance={"name": "unguided"}, **given,
                     run_dir=str(tmp_path / "b"))  # fmt: skip
    assert not torch.equal(x_of(guided), x_of(plain))


@pytest.mark.parametrize(
    "models, message",
    [
        (
            {"model": {"name": "Diffusers", "path": "x"}},
            "no 'Diffusers' in lightning_cfg.diffusers",
        ),
        ({"model": named(Headless)}, "lacks forward"),
        ({"model": {"name": "os.path.basename", "p": "x"}}, r"models\.model"),
        ({"model": named(Judge)}, "is a classifier"),
        ({"model": named(Mine, colour="red")}, "unknown key 'models.model.colour'"),
    ],
)
def test_what_is_no_network(models, message, tmp_path):
    with pytest.raises(UserError, match=message):
        generate(models=models, guidance={"name": "unguided"}, sampler={"name": "heun"}, n=2,
                 run_dir=str(tmp_path / "run"))  # fmt: skip


def test_levels_of_a_model_that_has_none(tmp_path):
    with pytest.raises(UserError, match=r"levels=model: models\.model has no levels of its own"):
        generate(models={"model": named(Mine)}, guidance=CFG, sampler=EULER, n=2,
                 run_dir=str(tmp_path / "run"))  # fmt: skip


# Prompts


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.txt", "", "holds no prompts"),
        ("a.txt", "a cat\na cat\n", "has the prompt 'a cat' twice"),
        ("a.jsonl", "a cat", "line 1"),
        ("a.jsonl", '{"text": "a cat"}', "line 1 is no"),
        ("a.jsonl", '{"prompt": "a cat", "candidates": ["a dog"]}', "candidate 'a dog'"),
        ("a.jsonl", '{"prompt": "a cat", "colour": 1}', "its keys are"),
    ],
)
def test_files_of_prompts(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        Prompts(path=str(tmp_path / name))


def test_prompts_and_their_candidates(tmp_path):
    rows = [
        {"prompt": "a", "candidates": ["c"]},
        {"prompt": "b"},
        {"prompt": "c", "candidates": []},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = Prompts(path=str(tmp_path / "a.jsonl"))
    assert (data.class_names, data.num_classes) == (["a", "b", "c"], 3)
    assert data.confusable.int().tolist() == [[0, 0, 1], [1, 0, 1], [0, 0, 0]]


def test_a_reference_is_one_that_may_be_taken_for_the_class():
    """b is the most probable other class of a, and may not be it; c may be nothing's."""
    logits = torch.tensor([[1.0, 3.0, 0.5], [1.0, 3.0, 0.5], [1.0, 3.0, 0.5]])

    def classifier(x: Tensor, sigma: Tensor) -> Tensor:
        return logits

    x, sigma, c = torch.zeros(3, 2), torch.ones(3), torch.arange(3)
    r, u = confusion(classifier, "denoised", x, sigma, c, x, "pairwise")
    assert r.tolist() == [1, 0, 1]
    classifier.confusable = torch.tensor([[0, 0, 1], [1, 0, 1], [0, 0, 0]]).bool()
    r, u = confusion(classifier, "denoised", x, sigma, c, x, "pairwise")
    assert r[:2].tolist() == [2, 0]
    torch.testing.assert_close(u, torch.tensor([-0.5, -2.0, -torch.inf]).sigmoid())
    _, u = confusion(classifier, "denoised", x, sigma, c, x, "complement")
    e = logits.exp()
    expected = [1 - e[0, 0] / (e[0, 0] + e[0, 2]), 1 - e[1, 1] / e[1].sum(), 0.0]
    torch.testing.assert_close(u, torch.tensor(expected))


# Folders of diffusers


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> SimpleNamespace:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    from helpers import pipelines

    root = tmp_path_factory.mktemp("pipelines")
    ddim = diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False)
    dit = pipelines.dit(ddim)
    dit.save_pretrained(root / "dit")
    texts = pipelines.text_parts(root)
    scheduler = diffusers.EulerDiscreteScheduler(**pipelines.SD, timestep_spacing="trailing")
    sd = pipelines.sd(scheduler, **vars(texts))
    sd.save_pretrained(root / "sd")
    weak = pipelines.sd(scheduler, pipelines.unet(4, 9), **vars(texts))
    weak.save_pretrained(root / "weak")
    (root / "prompts.txt").write_text("abc\nbad cab\n\nfig\n")
    return SimpleNamespace(root=root, dit=dit, sd=sd)


def elsewhere(folder: Path, **keys: object) -> dict:
    return {"name": "diffusers", "path": str(folder), **keys}


def test_classes_of_a_folder(folders, tmp_path):
    models = {"model": elsewhere(folders.root / "dit")}
    given = {"models": models, "guidance": CFG, "sampler": EULER, "n": 3}
    x = x_of(generate(**given, class_label=7, run_dir=str(tmp_path / "run")))
    assert x.shape == (3, 4, 8, 8)
    assert x.isfinite().all()


def test_a_run_is_known_by_the_folders_content(folders, tmp_path):
    import shutil

    shutil.copytree(folders.root / "dit", tmp_path / "copy")
    given = {"guidance": CFG, "sampler": EULER, "n": 2, "run_dir": str(tmp_path / "run")}
    generate(models={"model": elsewhere(folders.root / "dit")}, **given)
    generate(models={"model": elsewhere(tmp_path / "copy")}, **given)  # finished already
    config = tmp_path / "copy/scheduler/scheduler_config.json"
    config.write_text(config.read_text().replace("0.02", "0.03"))
    with pytest.raises(UserError, match=r"models\.model"):
        generate(models={"model": elsewhere(tmp_path / "copy")}, **given)


def test_prompts_give_what_the_pipeline_gives(folders, tmp_path, monkeypatch):
    """From the same noise, which is put in the place of our seeds'."""
    monkeypatch.setenv("LIGHTNING_CFG_CACHE", str(tmp_path / "cache"))
    n = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    texts = ["abc", "bad cab", "fig"]
    theirs = folders.sd(texts, guidance_scale=3.0, num_inference_steps=4, latents=n.clone(),
                        output_type="latent").images  # fmt: skip
    labels = iter([torch.arange(3)])
    monkeypatch.setattr("lightning_cfg.sampling.prepared.seeded",
                        lambda *_: (n.double(), next(labels), None))  # fmt: skip
    run = generate(
        models={"model": elsewhere(folders.root / "sd")}, guidance=CFG, sampler=EULER, n=3,
        data={"name": "Prompts", "path": str(folders.root / "prompts.txt")},
        run_dir=str(tmp_path / "run"),
    )  # fmt: skip
    far = (x_of(run) - theirs).norm() / theirs.norm()
    assert far < 1e-5  # prompts are encoded in other batches than the pipeline's, in float32


def test_prompts_are_encoded_once_and_kept(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_CFG_CACHE", str(tmp_path / "cache"))
    from lightning_cfg.diffusers import conditions

    asked, own = [], conditions.encoded
    monkeypatch.setattr(
        conditions, "encoded", lambda pipe, texts: (asked.extend(texts), own(pipe, texts))[1]
    )
    given = {"guidance": CFG, "sampler": EULER, "n": 4, "class_label": 1,
             "models": {"model": elsewhere(folders.root / "sd")},
             "data": {"name": "Prompts", "path": str(folders.root / "prompts.txt")}}  # fmt: skip
    first = generate(**given, run_dir=str(tmp_path / "a"))
    assert sorted(asked) == ["", "bad cab"]  # only what a sample needs
    again = generate(**given, run_dir=str(tmp_path / "b"))
    assert len(asked) == 2
    assert torch.equal(x_of(first), x_of(again))


def test_guidance_by_other_networks_of_prompts(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_CFG_CACHE", str(tmp_path / "cache"))
    models = {
        role: elsewhere(folders.root / name) for role, name in (("model", "sd"), ("weak", "weak"))
    }
    given = {"models": models, "sampler": EULER, "n": 3, "guidance": {"name": "autoguidance"},
             "data": {"name": "Prompts", "path": str(folders.root / "prompts.txt")}}  # fmt: skip
    assert x_of(generate(**given, run_dir=str(tmp_path / "a"))).isfinite().all()
    cads = {"name": "cads", "of": CFG}
    models = {"model": models["model"]}
    ddim = {**EULER, "name": "ddim"}
    noisy = generate(**{**given, "models": models, "guidance": cads, "sampler": ddim},
                     run_dir=str(tmp_path / "b"))  # fmt: skip
    plain = generate(**{**given, "models": models, "guidance": CFG, "sampler": ddim},
                     run_dir=str(tmp_path / "c"))  # fmt: skip
    assert x_of(noisy).isfinite().all()
    assert not torch.allclose(x_of(noisy), x_of(plain))


def test_without_prompts_it_says_how_to_give_them(folders, tmp_path):
    with pytest.raises(UserError, match=r"takes prompts: data: \{name: Prompts"):
        generate(models={"model": elsewhere(folders.root / "sd")}, guidance=CFG, sampler=EULER, n=2,
                 run_dir=str(tmp_path / "run"))  # fmt: skip


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: (f / "model_index.json").unlink(), "holds no model_index.json"),
        (lambda f: (f / "model_index.json").write_text("{"), "damaged or no json"),
        (lambda f: own_code(f), "code of its own, which is not run"),
        (lambda f: weights(f).write_bytes(b"x"), "no DiTTransformer2DModel that diffusers reads"),
        (lambda f: weights(f).rename(weights(f).with_suffix(".bin")), "no DiTTransformer2DModel"),
        (lambda f: rename_class(f, "DiTTransformer2DModel", "PixArtModel"), "known are"),
        (lambda f: rename_class(f, "DDIMScheduler", "KarrasVeScheduler"), "KarrasVeScheduler"),
    ],
)  # fmt: skip
def test_folders_that_are_not_read(folders, tmp_path, damage, message):
    import shutil

    folder = tmp_path / "folder"
    shutil.copytree(folders.root / "dit", folder)
    damage(folder)
    with pytest.raises(UserError, match=message):
        generate(models={"model": elsewhere(folder)}, guidance=CFG, sampler=EULER, n=2,
                 run_dir=str(tmp_path / "run"))  # fmt: skip


def weights(folder: Path) -> Path:
    return folder / "transformer/diffusion_pytorch_model.safetensors"


def own_code(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index["transformer"] = ["my_code", "Network"]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "my_code.py").write_text("raise SystemExit('was run')")


def rename_class(folder: Path, old: str, new: str) -> None:
    file = folder / "model_index.json"
    file.write_text(file.read_text().replace(old, new))
