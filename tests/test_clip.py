"""CLIP as a classifier over prompts, against transformers' own; diffusers' guiders as methods."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from helpers import pipelines  # noqa: E402

from lightning_cfg.data.build import build_data  # noqa: E402
from lightning_cfg.data.prompts import Prompts  # noqa: E402
from lightning_cfg.diffusers import clip  # noqa: E402
from lightning_cfg.diffusion.mixture import GaussianMixture  # noqa: E402
from lightning_cfg.diffusion.samplers import euler  # noqa: E402
from lightning_cfg.errors import UserError  # noqa: E402
from lightning_cfg.runs.names import METRICS  # noqa: E402
from lightning_cfg.runs.tensors import load_tensors, save_tensors  # noqa: E402
from lightning_cfg.sampling.guided import guide  # noqa: E402
from lightning_cfg.verbs.evaluate import evaluate  # noqa: E402

TEXTS = ["abc", "bad cab", "fig", "cab"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = pipelines.text_parts(folder).tokenizer
    torch.manual_seed(3)
    text = {"vocab_size": len(tokenizer), "hidden_size": 12, "intermediate_size": 16,
            "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 7,
            "eos_token_id": tokenizer.eos_token_id}  # fmt: skip
    vision = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1,
              "num_attention_heads": 2, "image_size": 16, "patch_size": 8}  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    net = transformers.CLIPModel(config).eval()
    net.save_pretrained(folder / "net")
    tokenizer.save_pretrained(folder / "net")
    (folder / "prompts.txt").write_text("\n".join(TEXTS))
    data = Prompts(path=str(folder / "prompts.txt"))
    return SimpleNamespace(path=str(folder / "net"), net=net, tokenizer=tokenizer, data=data)


def told(made: SimpleNamespace, **keys: object) -> clip:
    model = clip(path=made.path, **keys)
    model.take_data(made.data)
    return model


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_logits_are_those_of_transformers(made, temperature):
    """Of 8-bit images of its own size, by its own image processor."""
    g = torch.Generator().manual_seed(0)
    bytes_ = torch.randint(0, 256, (5, 3, 16, 16), generator=g, dtype=torch.uint8)
    processor = transformers.CLIPImageProcessor(do_resize=False, do_center_crop=False)
    pixels = processor([image for image in bytes_], return_tensors="pt").pixel_values
    words = made.tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    theirs = made.net(pixel_values=pixels, **words).logits_per_image
    x = bytes_ / 127.5 - 1
    ours = told(made, temperature=temperature)(x, torch.zeros(5))
    torch.testing.assert_close(ours, theirs.detach() / temperature, rtol=1e-4, atol=1e-4)


def test_images_of_another_size_and_grey_ones(made):
    model = told(made)
    grey = torch.rand(2, 1, 16, 16) * 2 - 1
    torch.testing.assert_close(model.of_images(grey), model.of_images(grey.expand(-1, 3, -1, -1)))
    flat = torch.full((1, 3, 64, 48), 0.3)
    torch.testing.assert_close(
        model.of_images(flat), model.of_images(flat[..., :16, :16]), rtol=1e-4, atol=1e-4
    )


def test_paraphrases_are_no_references(made):
    texts = told(made).texts
    cos = (texts @ texts.T).fill_diagonal_(-1)
    cut = cos.max().item() - 1e-4  # between the nearest pair and the others
    model = told(made, paraphrase=max(0.0, cut))
    i, j = divmod(cos.argmax().item(), len(TEXTS))
    assert not model.confusable[i, j]
    assert not model.confusable.diagonal().any()
    assert told(made, paraphrase=1.0).confusable.sum() == 12


def test_what_is_missing(made, tmp_path):
    with pytest.raises(UserError, match="clip takes prompts"):
        clip(path=made.path).take_data(None)
    with pytest.raises(UserError, match="no such folder"):
        clip(path=str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no CLIPModel"):
        clip(path=str(tmp_path / "empty"))


# Text alignment, by another CLIP than the guiding one


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A file of 9 colour pictures of the prompts, as another run would have it."""
    x = torch.rand(9, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    c = torch.arange(9) % len(TEXTS)
    save_tensors(tmp_path / "samples.safetensors", x=x, c=c, seed=torch.arange(9))
    return tmp_path / "samples.safetensors"


def aligned(made: SimpleNamespace, pictures: Path, **keys: object) -> dict:
    how = {"classifier": {"name": "clip", "path": made.path}, "by_class": False}
    how |= {"data": {"name": "Prompts", "path": str(Path(made.path).parent / "prompts.txt")}}
    how |= {"run_dir": str(pictures.parent / "run"), **keys}
    run = evaluate(samples={"theirs": str(pictures)}, **how)
    return json.loads((run / METRICS).read_text())[0]


def test_alignment_is_the_cosine_of_transformers(made, pictures):
    row = aligned(made, pictures, metrics=["text_alignment", "class_accuracy"])
    x, c = load_tensors(pictures, "x", "c").values()
    bytes_ = ((x + 1) * 127.5 + 0.5).floor().clamp(0, 255).to(torch.uint8)
    processor = transformers.CLIPImageProcessor(do_resize=False, do_center_crop=False)
    pixels = processor(list(bytes_), return_tensors="pt").pixel_values
    words = made.tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    logits = made.net(pixel_values=pixels, **words).logits_per_image.detach()
    own = logits[torch.arange(9), c].double() / made.net.logit_scale.exp().item()
    assert row["text_alignment"] == pytest.approx(own.mean().item(), abs=1e-5)
    assert row["text_alignment_se"] == pytest.approx(own.std().item() / 3, rel=1e-3)
    assert row["class_accuracy"] == (logits.argmax(1) == c).double().mean().item()


def test_all_that_fits_prompts_without_pictures(made, pictures):
    row = aligned(made, pictures)
    measured = {"class_accuracy", "confidence", "text_alignment", "text_alignment_se"}
    assert set(row) == {"samples", "class", "n", *measured}


def test_what_no_alignment_is_measured_by(made, pictures, tmp_path):
    with pytest.raises(UserError, match=r"classifier test_clip\.Drawing is no classifier"):
        aligned(made, pictures, classifier={"name": named(Drawing)})
    with pytest.raises(UserError, match="metric nearest_real needs y"):
        aligned(made, pictures, metrics=["nearest_real"])
    with pytest.raises(UserError, match="no such folder"):
        aligned(made, pictures, classifier={"name": "clip", "path": str(tmp_path / "none")})


class Drawing(torch.nn.Module):
    """A denoiser in the place of a classifier."""

    shape, num_classes = (3, 16, 16), len(TEXTS)

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return x


def named(made_by: type) -> str:
    return f"test_clip.{made_by.__name__}"


# Guiders of diffusers


@pytest.fixture(scope="module")
def truth(mixture) -> GaussianMixture:
    return build_data(mixture).truth


def sampled(truth: GaussianMixture, guidance: dict, steps: int = 6) -> torch.Tensor:
    n = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    c = torch.arange(50) % 2
    guided = guide(guidance, {"model": truth})
    return list(euler(guided, n, c, steps=steps, sigma_max=10.0, sigma_min=0.05))[-1][1]


def theirs(name: str, **keys: object) -> dict:
    return {"name": "lightning_cfg.diffusers.guider", "guider": name, "keys": keys}


def test_their_cfg_is_ours(truth):
    ours = sampled(truth, {"name": "classifier_free", "scale": 3.0})
    found = sampled(truth, theirs("ClassifierFreeGuidance", guidance_scale=3.0))
    torch.testing.assert_close(found, ours)
    found = sampled(
        truth, theirs("ClassifierFreeGuidance", guidance_scale=2.0, use_original_formulation=True)
    )
    torch.testing.assert_close(found, ours)


@pytest.mark.parametrize("norm, momentum, eta", [(None, 0.0, 0.0), (0.3, -0.5, 0.25)])
def test_their_apg_is_ours_where_both_work_on_the_denoised_sample(truth, norm, momentum, eta):
    """In the original formulation, where their scale is added to D_c: it is ours less 1."""
    keys = {"guidance_scale": 2.0, "adaptive_projected_guidance_momentum": momentum or None,
            "adaptive_projected_guidance_rescale": norm or 0.0, "eta": eta,
            "use_original_formulation": True}  # fmt: skip
    section = {**theirs("AdaptiveProjectedGuidance", **keys), "prediction": "sample"}
    ours = {"name": "apg", "scale": 3.0, "momentum": momentum, "norm": norm, "eta": eta}
    torch.testing.assert_close(sampled(truth, section), sampled(truth, ours), rtol=1e-6, atol=1e-6)


def test_start_and_stop_are_shares_of_the_steps(truth):
    """The first half of six steps: then it is as CFG that stops at the fourth level."""
    found = sampled(truth, theirs("ClassifierFreeGuidance", guidance_scale=3.0, stop=0.5))
    asked = []
    n = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    c = torch.arange(50) % 2

    def denoise(x, sigma, c):
        step = len(asked)
        asked.append(step)
        D, null = truth(x, sigma, c), truth(x, sigma, torch.full_like(c, -1))
        return null + (3.0 if step < 3 else 1.0) * (D - null)

    *_, (_, x) = euler(denoise, n, c, steps=6, sigma_max=10.0, sigma_min=0.05)
    torch.testing.assert_close(found, x)


@pytest.mark.parametrize(
    "section, message",
    [
        (theirs("ClassifierFreeGuidanc"), "did you mean 'ClassifierFreeGuidance'"),
        (theirs("SkipLayerGuidance"), "guider SkipLayerGuidance is not known"),
        (theirs("ClassifierFreeGuidance", colour=1), "guider ClassifierFreeGuidance"),
        (theirs("ClassifierFreeGuidance", start=2.0), "between 0.0 and 1.0"),
    ],
)
def test_guiders_that_do_not_serve(truth, section, message):
    with pytest.raises(UserError, match=message):
        sampled(truth, section)


def test_the_classifier_guides_prompts(made, tmp_path, monkeypatch):
    """A pipeline of prompts with CLIP on its decoded samples, from a config."""
    from lightning_cfg.runs.tensors import load_tensors
    from lightning_cfg.verbs.generate import generate

    monkeypatch.setenv("LIGHTNING_CFG_CACHE", str(tmp_path / "cache"))
    scheduler = diffusers.EulerDiscreteScheduler(**pipelines.SD, timestep_spacing="trailing")
    (tmp_path / "texts").mkdir()
    parts = pipelines.text_parts(tmp_path / "texts")
    pipelines.sd(scheduler, **vars(parts)).save_pretrained(tmp_path / "sd")
    (tmp_path / "prompts.txt").write_text("\n".join(TEXTS))
    decode = {"name": "DiffusersVAE", "path": str(tmp_path / "sd/vae")}
    run = generate(
        models={
            "model": {"name": "diffusers", "path": str(tmp_path / "sd")},
            "classifier": {"name": "clip", "path": made.path, "decode": decode, "temperature": 10},
        },
        data={"name": "Prompts", "path": str(tmp_path / "prompts.txt")},
        guidance={"name": "gfcg", "scale": 2.0}, n=4, decode=decode, images="folder",
        sampler={"name": "euler", "steps": 3, "levels": "model"}, run_dir=str(tmp_path / "run"),
    )  # fmt: skip
    assert load_tensors(Path(run) / "samples/samples.safetensors", "x")["x"].isfinite().all()
    assert len(list(Path(run).glob("samples/images/**/*.png"))) == 4


def test_the_page_is_true(made, tmp_path, monkeypatch):
    """Its Python, with tiny networks in the place of the published folders."""
    page = Path(__file__).parents[1] / "docs/diffusers.md"
    code = "\n".join(block.split("```")[0] for block in page.read_text().split("```python\n")[1:])
    (tmp_path / "texts").mkdir()
    scheduler = diffusers.EulerDiscreteScheduler(**pipelines.SD, timestep_spacing="trailing")
    pipe = pipelines.sd(scheduler, **vars(pipelines.text_parts(tmp_path / "texts")))
    pipe.save_pretrained(tmp_path / "weights/stable-diffusion-v1-5")
    made.net.save_pretrained(tmp_path / "weights/clip-vit-large-patch14")
    made.tokenizer.save_pretrained(tmp_path / "weights/clip-vit-large-patch14")
    monkeypatch.chdir(tmp_path)
    told: dict = {}
    exec(code, told)
    assert told["image"].size == told["images"][0].size == (8, 8)
    assert len(told["images"]) == 3


def test_the_yaml_of_the_page_is_a_config(made, tmp_path, monkeypatch):
    import yaml

    from lightning_cfg.config.check import checked
    from lightning_cfg.verbs.evaluate import evaluate
    from lightning_cfg.verbs.generate import generate

    page = Path(__file__).parents[1] / "docs/diffusers.md"
    for block in page.read_text().split("```yaml\n")[1:]:
        keys = yaml.safe_load(block.split("```")[0])
        if "samples" in keys:
            config = checked(evaluate.__wrapped__, keys)
            assert config["classifier"]["name"] == "clip"
        else:
            config = checked(generate.__wrapped__, keys)
            assert config["sampler"]["levels"] == {"name": "model"}
