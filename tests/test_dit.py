"""DiT: against diffusers' own network, its paper's sizes, and as a run of its published files."""

import pytest
import torch
import torch.nn.functional as F
from helpers import pipelines

from lightning_cfg.diffusion.models import DDPM
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import NULL
from lightning_cfg.nets import DiT
from lightning_cfg.nets.dit import place
from lightning_cfg.runs.checkpoints import restore
from lightning_cfg.runs.names import SAMPLES
from lightning_cfg.runs.tensors import load_samples
from lightning_cfg.studies.flops import inputs, macs
from lightning_cfg.verbs.adopt import adopt
from lightning_cfg.verbs.generate import generate
from lightning_cfg.weights.catalogue import ASSETS

SMALL = {"channels": 16, "blocks": 2, "num_heads": 2}


def awake(net: DiT) -> DiT:
    """None of its weights is zero."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=g))
    return net.eval()


def theirs(held: dict) -> dict:
    """A state dict of diffusers' network under the names of DiT's own code, of which it was made.

    There a time and a class embedding stand in every block, all alike.
    """
    first = "transformer_blocks.0.norm1.emb"
    names = {
        "pos_embed.proj": "x_embedder.proj", "proj_out_1": "final_layer.adaLN_modulation.1",
        "proj_out_2": "final_layer.linear",
        f"{first}.timestep_embedder.linear_1": "t_embedder.mlp.0",
        f"{first}.timestep_embedder.linear_2": "t_embedder.mlp.2",
        f"{first}.class_embedder.embedding_table": "y_embedder.embedding_table",
    }  # fmt: skip
    inside = {
        "norm1.linear": "adaLN_modulation.1", "attn1.to_out.0": "attn.proj",
        "ff.net.0.proj": "mlp.fc1", "ff.net.2": "mlp.fc2",
    }  # fmt: skip
    state = {}
    for name, weight in held.items():
        layer, _, last = name.rpartition(".")
        _, _, rest = layer.partition(".")
        number, _, part = rest.partition(".")
        if layer in names:
            state[f"{names[layer]}.{last}"] = weight
        elif part in inside:
            state[f"blocks.{number}.{inside[part]}.{last}"] = weight
        elif part == "attn1.to_q":
            three = [held[name.replace("to_q", f"to_{one}")] for one in "qkv"]
            state[f"blocks.{number}.attn.qkv.{last}"] = torch.cat(three)
    return state


@pytest.fixture(scope="module")
def original():
    """diffusers' network, its weights as DiT's own file would hold them.

    Two things of it are not as in DiT's own code: its frequencies of time are 10,000^(-i / 127),
    there 10,000^(-i / 128), and its second norms have an eps of 1e-5, there 1e-6.
    """
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    net = pipelines.dit(diffusers.DDIMScheduler()).transformer.eval()
    one = net.transformer_blocks[0].norm1.emb
    with torch.no_grad():
        for parameter in net.parameters():  # so that every part is heard
            parameter.mul_(2)
        for block in net.transformer_blocks:
            block.norm1.emb.load_state_dict(one.state_dict())
            block.norm1.emb.time_proj.downscale_freq_shift = 0
            block.norm3.eps = 1e-6
    return net, {**theirs(net.state_dict()), "pos_embed": net.pos_embed.pos_embed}


def test_a_file_of_theirs_gives_what_diffusers_gives(original, tmp_path):
    """By the equation of a DDPM; the variance is left out, and NULL is its last class."""
    net, state = original
    torch.save(state, tmp_path / "DiT.pt")
    run = adopt(file=str(tmp_path / "DiT.pt"), num_heads=2, run_dir=str(tmp_path / "run"))
    model = restore(run)
    assert (type(model), model.shape, model.num_classes) == (DDPM, (4, 8, 8), 1000)
    assert (model.label_dropout, model.net.patch) == (0.1, 2)
    g = torch.Generator().manual_seed(1)
    x, t = torch.randn(4, 4, 8, 8, generator=g), torch.tensor([3, 400, 998, 500])
    c = torch.tensor([0, 7, 999, NULL])
    s = model.sigmas[t].float()[:, None, None, None]
    with torch.no_grad():
        eps = net(x / (1 + s**2).sqrt(), t, c % 1001).sample[:, :4]
        found = (x - model(x, s.flatten(), c)) / s
        other = model(x, s.flatten(), c.roll(1))
    assert eps.std() > 0.1
    torch.testing.assert_close(found, eps, rtol=1e-4, atol=1e-3)  # divided by s = 0.012
    with torch.no_grad():
        bare = model.net(x, t / 1000, c)
        expected = net(x, t, c % 1001).sample[:, :4]
    torch.testing.assert_close(bare, expected, rtol=0, atol=1e-5)
    assert (other - model(x, s.flatten(), c)).abs().max() > 1e-3  # its class is heard


def test_patches_lie_where_they_lay(original):
    _, state = original
    assert torch.allclose(place(16, 4, 4), state["pos_embed"], atol=1e-6)


def test_guided_it_generates(original, tmp_path):
    """What classifier-free guidance and a weakened copy ask for is there."""
    torch.save({"ema": original[1]}, tmp_path / "DiT.pt")
    run = adopt(file=str(tmp_path / "DiT.pt"), head_channels=8, run_dir=str(tmp_path / "run"))
    weak = {"path": str(run), "weaken": {"name": "drop"}}
    made = []
    for name, models in (("classifier_free", {}), ("autoguidance", {"weak": weak})):
        made.append(generate(
            models={"model": str(run), **models}, guidance={"name": name, "scale": 2.0},
            sampler={"name": "ddim", "steps": 3}, n=3, run_dir=str(tmp_path / name),
        ))  # fmt: skip
    x, y = (load_samples(one / SAMPLES, (4, 8, 8), 1000)["x"] for one in made)
    assert x.isfinite().all()
    assert y.isfinite().all()
    assert not torch.allclose(x, y)


@pytest.mark.parametrize(
    "side, patch, channels, blocks, heads, millions, gmac",
    [  # of the paper's tables 1 to 4, where the products are called Gflops
        (32, 4, 384, 12, 6, 33, 1.4), (32, 4, 768, 12, 12, 130, 5.6),
        (32, 4, 1024, 24, 16, 458, 19.7), (32, 4, 1152, 28, 16, 675, 29.1),
        (32, 2, 1152, 28, 16, 675, 118.6), (64, 2, 1152, 28, 16, 675, 524.6),
    ],
)  # fmt: skip
def test_the_papers_networks_have_its_sizes(side, patch, channels, blocks, heads, millions, gmac):
    with torch.device("meta"):
        net = DiT((4, side, side), 1000, channels=channels, blocks=blocks, num_heads=heads,
                  patch=patch, learned_variance=True)  # fmt: skip
        numbers = sum(parameter.numel() for parameter in net.parameters())
        assert macs(net, *inputs((4, side, side))) / 1e9 == pytest.approx(gmac, rel=5e-3, abs=0.05)
    assert round(numbers / 1e6) == millions


def test_the_published_files_are_told_by_their_names():
    for side in (256, 512):
        asset = ASSETS[f"dit-xl-2-{side}x{side}"]
        assert asset.is_network
        assert (asset.file, asset.told) == (f"DiT-XL-2-{side}x{side}.pt", {"num_heads": 16})


def test_a_new_one_answers_zero_and_its_blocks_change_nothing():
    """adaLN-Zero. What is left is a layer for each patch, put back where the patch was."""
    torch.manual_seed(0)
    net = DiT((3, 4, 12), 5, patch=2, **SMALL)
    x, noise, c = torch.randn(2, 3, 4, 12), torch.rand(2), torch.tensor([0, NULL])
    assert not net(x, noise, c).any()
    torch.nn.init.normal_(net.final_layer.linear.weight)
    h = net.x_embedder["proj"](x).flatten(2).mT + net.pos_embed  # (B, 2 * 6, channels)
    out = net.final_layer.linear(F.layer_norm(h, (16,), eps=1e-6))
    by_channel = out.unflatten(2, (4, 3)).mT.flatten(2).mT  # (B, C 2 2, patches), as `fold` has it
    expected = F.fold(by_channel, (4, 12), 2, stride=2)
    torch.testing.assert_close(net(x, noise, c), expected)


def test_rows_and_columns_are_told_apart():
    there = place(16, 3, 5)[0].unflatten(0, (3, 5))
    assert torch.equal(there[:, :, :8], there[:1, :, :8].expand(3, -1, -1))
    assert torch.equal(there[:, :, 8:], there[:, :1, 8:].expand(-1, 5, -1))
    assert len(there.flatten(0, 1).unique(dim=0)) == 15


def test_every_weight_is_trained():
    net = awake(DiT((3, 8, 8), 4, **SMALL))
    x, noise, c = torch.randn(5, 3, 8, 8), torch.rand(5), torch.tensor([0, 1, 2, 3, NULL])
    net(x, noise, c).square().sum().backward()
    assert all(parameter.grad.any() for parameter in net.parameters())
    assert not net.pos_embed.requires_grad


def test_each_image_is_answered_by_itself_from_noise_and_class():
    net = awake(DiT((3, 8, 8), 4, **SMALL))
    x, noise, c = torch.randn(3, 3, 8, 8), torch.rand(3), torch.tensor([0, 1, NULL])
    with torch.no_grad():
        together = net(x, noise, c)
        for i in range(3):
            one = net(x[i : i + 1], noise[i : i + 1], c[i : i + 1])
            torch.testing.assert_close(one[0], together[i], rtol=0, atol=1e-5)
        assert torch.equal(net(x, noise), net(x, noise, torch.full((3,), NULL)))
        assert not torch.allclose(net(x, noise, c.roll(1)), together)
        assert not torch.allclose(net(x, noise.roll(1), c), together)


@pytest.mark.parametrize(
    "shape, settings, message",
    [
        ((3, 9, 8), {}, "patches of 2 x 2 need images of shape (C, H, W) with H and W divisible"),
        ((2,), {}, "got (2,)"),
        ((3, 8, 8), {"channels": 18}, "channels must be divisible by 4 and by num_heads, got 18"),
        ((3, 8, 8), {"num_heads": 3}, "got 16 and 3"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(shape, settings, message):
    with pytest.raises(UserError) as refused:
        DiT(shape, 2, **{**SMALL, **settings})
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def without(name: str):
    return lambda state: {key: weight for key, weight in state.items() if name not in key}


def cut(name: str, rows: int):
    return lambda state: {**state, name: state[name][:, :rows]}


@pytest.mark.parametrize(
    "change, keys, message",
    [
        (dict, {}, "its weights do not tell num_heads= or head_channels=: docs/adopt.md"),
        (dict, {"num_heads": 2, "head_channels": 8}, "say the same: give one of them"),
        (dict, {"head_channels": 5}, "head_channels 5 does not divide 16 channels"),
        (dict, {"num_heads": 3}, "divisible by 4 and by num_heads, got 16 and 3"),
        (dict, {"num_heads": 2, "schedule": "cosine"}, "schedule=cosine does not count"),
        (dict, {"num_heads": 2, "shape": [4, 16, 16]}, "but its network is of [4, 8, 8]"),
        (dict, {"num_heads": 2, "kind": "edm2"}, "is of the kind dit, not edm2"),
        (cut("pos_embed", 15), {"num_heads": 2}, "its 15 positions are no square"),
        (without("blocks.1.mlp.fc1"), {"num_heads": 2}, "weights lack net.blocks.1.mlp.fc1"),
        (without("final_layer"), {"num_heads": 2}, "KeyError"),
        (without("y_embedder"), {"num_heads": 2}, "no network that is known here; its first names"),
    ],
)
def test_files_that_are_no_such_network(change, keys, message, tmp_path):
    state = change(awake(DiT((4, 8, 8), 3, **SMALL)).state_dict())
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(UserError) as refused:
        adopt(file=str(tmp_path / "a.pt"), run_dir=str(tmp_path / "run"), **keys)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()
