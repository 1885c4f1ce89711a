"""EDM's and EDM2's pickled networks under our names (Karras et al. 2022 and 2024).

Their settings stand in the file as keywords of their classes; none of the source code beside them
is read. `EDMPrecond` is `models.EDM` of a `SongUNet`, or of an `ADMUNet` for EDM's `DhariwalUNet`;
EDM2's `Precond` is `models.EDM2` of an `EDM2UNet`.
"""

from typing import Any

from torch import Tensor

from lightning_cfg.errors import UserError
from lightning_cfg.nets.edm2_unet import from_edm2
from lightning_cfg.nets.song_unet import from_edm
from lightning_cfg.runs.pickled import Module, plain
from lightning_cfg.weights.published import Published

SONG = {  # EDM's defaults
    "model_channels": 128, "channel_mult": [1, 2, 2, 2], "channel_mult_emb": 4, "num_blocks": 4,
    "attn_resolutions": [16], "dropout": 0.1, "label_dropout": 0, "augment_dim": 0,
    "embedding_type": "positional", "channel_mult_noise": 1, "encoder_type": "standard",
    "decoder_type": "standard", "resample_filter": [1, 1],
}  # fmt: skip
DHARIWAL = {
    "model_channels": 192, "channel_mult": [1, 2, 3, 4], "channel_mult_emb": 4, "num_blocks": 3,
    "attn_resolutions": [32, 16, 8], "dropout": 0.1, "label_dropout": 0, "augment_dim": 0,
}  # fmt: skip
EDM2 = {
    "model_channels": 192, "channel_mult": [1, 2, 3, 4], "channel_mult_noise": None,
    "channel_mult_emb": None, "num_blocks": 3, "attn_resolutions": [16, 8], "label_balance": 0.5,
    "concat_balance": 0.5, "dropout": 0, "res_balance": 0.3, "attn_balance": 0.3, "clip_act": 256,
    "channels_per_head": 64, "resample_filter": [1, 1],
}  # fmt: skip
OTHERS = {"img_resolution", "img_channels", "in_channels", "out_channels", "label_dim"}
HEAD = 64  # channels of each head in DhariwalUNet


def published(network: Module) -> Published:
    """The network of a pickle; UserError for a class, or a setting, that there is not here."""
    if network.class_name == "Precond":
        return _edm2(network)
    if network.class_name == "EDMPrecond":
        return _edm(network)
    raise UserError(
        f"its network is of the class {network.class_name}; known here are EDMPrecond (EDM) and "
        "Precond (EDM2)"
    )


def _edm2(network: Module) -> Published:
    said = _settings(network.child("unet"), EDM2)
    channels, mult = said["model_channels"], said["channel_mult"]
    noise, embedding = said["channel_mult_noise"], said["channel_mult_emb"]
    net = {
        "name": "EDM2UNet",
        "channels": channels,
        "channel_mult": mult,
        "blocks": said["num_blocks"],
        "attention": _attention(said, _attribute(network, "img_resolution")),
        "dropout": float(said["dropout"]),
        "channels_per_head": said["channels_per_head"],
        "noise_channels": channels * (mult[0] if noise is None else noise),
        "embedding_channels": channels * (max(mult) if embedding is None else embedding),
        "label_balance": said["label_balance"],
        "res_balance": said["res_balance"],
        "attention_balance": said["attn_balance"],
        "concat_balance": said["concat_balance"],
        "clip": None if said["clip_act"] is None else float(said["clip_act"]),
        "filter": said["resample_filter"],
    }
    model = {"name": "EDM2", "label_dropout": 0.0, "sigma_data": _attribute(network, "sigma_data")}
    model["logvar_channels"] = network.settings.get("logvar_channels", 128)
    return Published("edm2", net, model, *_data(network), from_edm2(network.tensors()))


def _edm(network: Module) -> Published:
    inner = network.child("model")
    if inner.class_name not in NETS:
        raise UserError(
            f"its network is a {inner.class_name}; those of EDM known here are {', '.join(NETS)}"
        )
    net, weights, said = NETS[inner.class_name](inner, from_edm(network.tensors()))
    weights = {f"net.{name}": weight for name, weight in weights.items()}
    model = {"name": "EDM", "label_dropout": float(said["label_dropout"])}
    model["sigma_data"] = _attribute(network, "sigma_data")
    return Published("edm", net, model, *_data(network), weights)


def _song(inner: Module, weights: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor], dict]:
    said = _settings(inner, SONG)
    fourier = said["embedding_type"] == "fourier"
    _only(said, "channel_mult_emb", 4)
    _only(said, "decoder_type", "standard")
    _only(said, "channel_mult_noise", 2 if fourier else 1)
    net = {
        "name": "SongUNet",
        "channels": said["model_channels"],
        "channel_mult": said["channel_mult"],
        "blocks": said["num_blocks"],
        "attention_resolutions": _attention(said, inner.settings["img_resolution"]),
        "dropout": said["dropout"],
        "augment_dim": said["augment_dim"],
        "encoder": said["encoder_type"],
        "embedding": said["embedding_type"],
        "resample_filter": said["resample_filter"],
    }
    return net, weights, said


def _dhariwal(inner: Module, weights: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor], dict]:
    """EDM's `DhariwalUNet` as Dhariwal & Nichol's own: it is the same with other names.

    Its time is not scaled, and its rows of `qkv` are in another order.
    """
    said = _settings(inner, DHARIWAL)
    _only(said, "channel_mult_emb", 4)
    if said["model_channels"] < 128:
        raise UserError("its normalisations have fewer than 32 groups, which ADMUNet's always have")
    size = inner.settings["img_resolution"]
    sizes = {size >> level: 2**level for level in range(len(said["channel_mult"]))}
    net = {
        "name": "ADMUNet",
        "channels": said["model_channels"],
        "channel_mult": said["channel_mult"],
        "blocks": said["num_blocks"],
        "attention_resolutions": [sizes[r] for r in said["attn_resolutions"] if r in sizes],
        "head_channels": HEAD,
        "dropout": said["dropout"],
        "null_class": False,
        "scale_shift": True,
        "residual_resampling": True,
        "time_scale": 1.0,
    }
    return net, _as_adm(weights), said


NETS = {"SongUNet": _song, "DhariwalUNet": _dhariwal}
RESIDUAL = {  # a block's layers, and those of Dhariwal & Nichol's residual block
    "norm0": "in_layers.0", "conv0": "in_layers.2", "affine": "emb_layers.1",
    "norm1": "out_layers.0", "conv1": "out_layers.3", "skip": "skip_connection",
}  # fmt: skip
ATTENTION = {"norm2": "norm", "qkv": "qkv", "proj": "proj_out"}  # and of the attention after it
OUTSIDE = {
    "map_layer0": "time_embed.0", "map_layer1": "time_embed.2", "out_norm": "out.0",
    "out_conv": "out.2",
}  # fmt: skip


def _as_adm(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of EDM's `DhariwalUNet` under Dhariwal & Nichol's names."""
    places, found = _places(weights), {}
    for name, weight in weights.items():
        module, _, rest = name.partition(".")
        layer, _, last = rest.rpartition(".")
        if module in OUTSIDE:
            found[f"{OUTSIDE[module]}.{rest}"] = weight
        elif module == "map_label":
            found["label_emb.weight"] = weight.T
        elif last == "resample_filter" or module == "map_augment":
            continue  # means of 2 x 2, as ours; labels that sampling leaves at zero
        else:
            block, _, part = layer.partition(".")
            place, at = places[f"{module}.{block}"]
            if not part:  # the first convolution
                found[f"{place}.{at}.{last}"] = weight
            elif part in RESIDUAL:
                found[f"{place}.{at}.{RESIDUAL[part]}.{last}"] = weight
            else:
                weight = weight.squeeze(-1) if weight.ndim == 4 else weight
                weight = _rows(weight) if part == "qkv" else weight
                found[f"{place}.{at + 1}.{ATTENTION[part]}.{last}"] = weight
    return found


def _places(weights: dict[str, Tensor]) -> dict[str, tuple[str, int]]:
    """Where each block of EDM's stands: in which of their blocks, and as which layer in it."""
    inside = [name for name in weights if name.startswith(("enc.", "dec."))]
    blocks = dict.fromkeys(".".join(name.split(".")[:2]) for name in inside)
    attends = {".".join(name.split(".")[:2]) for name in weights if ".qkv." in name}
    places: dict[str, tuple[str, int]] = {}
    inputs, outputs, before = 0, 0, ""
    for block in blocks:
        if block.startswith("enc."):
            places[block] = f"input_blocks.{inputs}", 0
            inputs += 1
        elif block.endswith("_in0"):
            places[block] = "middle_block", 0
        elif block.endswith("_in1"):
            places[block] = "middle_block", 2
        elif block.endswith("_up"):  # the last layer of the output block before it
            places[block] = f"output_blocks.{outputs - 1}", 1 + (before in attends)
        else:
            places[block] = f"output_blocks.{outputs}", 0
            outputs += 1
        before = block
    return places


def _rows(weight: Tensor) -> Tensor:
    """Rows of qkv (3 C, ...): by head and channel q, k, v -> by head all of q, of k, of v."""
    heads = weight.shape[0] // 3 // HEAD
    return weight.reshape(heads, HEAD, 3, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def _settings(module: Module, defaults: dict) -> dict:
    """What a network was made with, its defaults filled in; UserError for what is not known."""
    said = module.settings
    for name in said.keys() - defaults.keys() - OTHERS:
        made = f"its {module.class_name} was made with {name}={said[name]!r:.40}"
        raise UserError(f"{made}, which is not known here")
    return {**defaults, **{name: value for name, value in said.items() if name in defaults}}


def _attention(said: dict, size: int) -> list[int]:
    """The levels with attention, by their side: theirs may name sides that no level has."""
    sizes = [size >> level for level in range(len(said["channel_mult"]))]
    return [side for side in said["attn_resolutions"] if side in sizes]


def _only(said: dict, name: str, value: object) -> None:
    if said[name] != value:
        raise UserError(f"its network has {name} {said[name]!r:.40}; here it is always {value}")


def _attribute(network: Module, name: str) -> Any:
    if name not in network.state:
        raise UserError(f"its {network.class_name} does not say its {name}")
    return plain(network.state[name])


def _data(network: Module) -> tuple[tuple[int, ...], int]:
    """(shape, classes)"""
    channels, size, classes = (
        _attribute(network, name) for name in ("img_channels", "img_resolution", "label_dim")
    )
    return (channels, size, size), classes
