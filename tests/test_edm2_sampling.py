"""Guided sampling by EDM2's conventions against its own (reference/edm2/edm2_sampling)."""

import json
from pathlib import Path

import pytest
import torch
from helpers.runs import manifest
from safetensors.torch import load_file
from test_edm2 import NAMES, read, under

from lightning_cfg.config import build
from lightning_cfg.diffusion.samplers import heun
from lightning_cfg.errors import UserError
from lightning_cfg.nets.edm2_unet import from_edm2
from lightning_cfg.runs.checkpoints import LAST
from lightning_cfg.runs.names import SAMPLES
from lightning_cfg.sampling.prepared import Counted, _agree, prepare
from lightning_cfg.sampling.seeds import seeded
from lightning_cfg.verbs.generate import generate

HEUN = {"name": "heun", "steps": 6, "sigma_min": 0.002, "sigma_max": 80, "rho": 7}


def checkpoint_of(run: Path, config: dict, weights: dict) -> str:
    """A run of ours with the original's weights."""
    net = {NAMES[key]: value for key, value in config.items() if key in NAMES}
    size = config["img_resolution"]
    state = from_edm2(weights)
    averaged = {k: v for k, v in state.items() if not k.endswith(("freqs", "phases"))}
    (run / LAST).parent.mkdir(parents=True)
    torch.save(
        {
            "config": {
                "net": {"name": "EDM2UNet", **net},
                "model": {"name": "EDM2", "logvar_channels": config["logvar_channels"]},
                "learner": {"name": "Diffusion"},
            },
            "shape": [config["img_channels"], size, size],
            "num_classes": config["label_dim"],
            "state_dict": {f"model.{name}": value for name, value in state.items()},
            "ema": {1: averaged},
            "global_step": 1,
        },
        run / LAST,
    )
    return str(run)


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("edm2")
    main, about = read("edm2_conditional")
    others, config = read("edm2_sampling")
    made = {
        "main": checkpoint_of(folder / "main", json.loads(about["config"]), under(main, "weights/"))
    }
    for name in ("unconditional", "weak"):
        weights = under(others, f"weights_{name}/")
        made[name] = checkpoint_of(folder / name, json.loads(config[name]), weights)
    return made


KINDS = [
    ("unguided", None, None),
    ("cfg_1.7_unconditional_net", "unconditional", 1.7),
    ("autoguidance_2.3", "weak", 2.3),
]


@pytest.mark.parametrize("kind, weak, scale", KINDS)
def test_samples_are_the_originals(networks, tmp_path, kind, weak, scale):
    values, _ = read("edm2_sampling")
    models, guidance = {"model": networks["main"]}, {"name": "unguided"}
    if weak:
        models["weak"] = networks[weak]
        guidance = {"name": "autoguidance", "scale": scale}
    made = []
    assert values["seeds"].tolist() == [0, 1, 2, 12345]
    for seed, n in ((0, 3), (12345, 1)):
        keys = {"models": models, "guidance": guidance, "sampler": HEUN, "device": "cpu"}
        run = generate(**keys, seed=seed, n=n, run_dir=str(tmp_path / f"run_{seed}"))
        made.append(load_file(run / SAMPLES))
        assert manifest(run)["evaluations"] == dict.fromkeys(models, 11)
    x, c = (torch.cat([one[name] for one in made]) for name in ("x", "c"))
    assert torch.equal(c, values["labels"])
    assert x.std() > 0.1
    expected = values[f"sample/{kind}/float64"].float()
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_noise_labels_and_levels_are_the_originals():
    values, _ = read("edm2_sampling")
    noise, c, _ = seeded(values["seeds"].tolist(), (4, 16, 16), 10)
    assert torch.equal(noise.float(), values["noise"])
    assert torch.equal(c, values["labels"])
    levels = [
        s
        for s, _ in heun(
            lambda x, s, c: x,
            noise[:1].double(),
            c[:1],
            **{k: v for k, v in HEUN.items() if k != "name"},
        )
    ]
    torch.testing.assert_close(torch.tensor(levels), values["t_steps"], rtol=1e-6, atol=0)


def test_a_network_without_classes_is_told_none(networks):
    """Whatever it is asked with, class 0, which data without any have."""
    heard = []

    def net(x, sigma, c):
        heard.append(c)
        return x

    net.num_classes = 0
    counted = Counted(net, "models.weak")
    x, sigma = torch.zeros(3, 4), torch.ones(3)
    counted(x, sigma, torch.tensor([4, 5, -1]))
    counted.told_c = False
    counted(x, sigma, torch.tensor([4, 5, -1]))
    counted(x, sigma, torch.zeros(3, 7))  # class vectors
    assert [c.tolist() for c in heard] == [[4, 5, -1], [0, 0, 0], [0, 0, 0]]
    assert counted.evaluations == 9
    models = {"model": networks["main"], "weak": networks["unconditional"]}
    ready = prepare(models=models, guidance={"name": "autoguidance"}, sampler=HEUN)
    assert (ready.classes, ready.networks["weak"].told_c) == (10, False)
    assert ready.networks["model"].told_c
    both = {"model": networks["unconditional"], "weak": networks["unconditional"]}
    ready = prepare(models=both, guidance={"name": "autoguidance"}, sampler=HEUN)
    assert (ready.classes, ready.networks["weak"].told_c) == (0, True)


def test_where_a_weak_model_needs_classes(networks):
    weak = networks["unconditional"]
    models = {"model": weak, "weak": networks["weak"]}
    with pytest.raises(UserError, match=r"num_classes 10, but models\.model has 0"):
        prepare(models=models, guidance={"name": "autoguidance"}, sampler=HEUN)

    def classless(x, sigma, c):
        return x

    classless.num_classes, classless.shape = 0, (2,)
    networks = {"model": Counted(classless), "other": Counted(classless)}
    assert _agree(networks) == ((2,), 0)
    networks["model"].num_classes = 3
    with pytest.raises(UserError, match=r"models\.other has num_classes 0"):  # only `weak` may
        _agree(networks)
    section = {"name": "gfcg_autoguidance"}
    with pytest.raises(UserError, match="weak model takes a reference label, needs a model that"):
        build("lightning_cfg.guidance", section, lambda x, s, c: x, classless, lambda x, s: x)


def test_cfg_is_refused_a_model_that_never_learned_no_class(networks):
    with pytest.raises(UserError, match="label dropout"):
        prepare(
            models={"model": networks["main"]},
            guidance={"name": "classifier_free", "scale": 2.0},
            sampler=HEUN,
        )
