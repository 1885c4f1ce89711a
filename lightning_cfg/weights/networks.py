"""Networks that others have published: where their files are, and what these do not say.

No owner states a hash or a size: the first download's hash is recorded and compared from then on.
"""

from collections.abc import Iterator

from lightning_cfg.weights.asset import Asset

NVIDIA = "https://nvlabs-fi-cdn.nvidia.com"
OPENAI = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021"
TONG = "https://github.com/atong01/conditional-flow-matching/releases/download/1.0.4"
DIT = "https://dl.fbaipublicfiles.com/DiT/models"
TORCHVISION = "https://download.pytorch.org/models"
RESNETS = ("resnet50-11ad3fa6.pth", "resnet152-f82ba261.pth")

EDM = (
    *(f"cifar10-32x32-{c}-{form}" for c in ("cond", "uncond") for form in ("vp", "ve")),
    *(f"{data}-64x64-uncond-{form}" for data in ("ffhq", "afhqv2") for form in ("vp", "ve")),
    "imagenet-64x64-cond-adm",
)
EDM2 = {  # size and thousands of images seen: relative widths of the average, of their presets
    "img512-xs-2147483": "0.045 0.135 0.150 0.200",
    "img512-s-2147483": "0.025 0.070 0.085 0.120 0.130 0.190",
    "img512-m-2147483": "0.015 0.030 0.100 0.155",
    "img512-l-1879048": "0.015 0.035 0.085 0.155",
    "img512-xl-1342177": "0.020 0.030 0.085 0.155",
    "img512-xxl-0939524": "0.015 0.070 0.075 0.130 0.150",
    "img512-xs-0134217": "0.125 0.165",
    "img512-m-0268435": "0.155 0.205",
    "img512-xs-uncond-2147483": "0.015 0.020 0.025 0.030 0.035 0.045 0.085 0.150",
    "img512-s-uncond-2147483": "0.070 0.090",
    "img512-xs-uncond-0134217": "0.110 0.125",
    "img64-xs-0134217": "0.110 0.175",
    "img64-s-1073741": "0.045 0.075 0.105",
    "img64-m-2147483": "0.060",
    "img64-l-1073741": "0.040",
    "img64-xl-0671088": "0.040",
}


def networks() -> Iterator[Asset]:
    """EDM's, EDM2's post-hoc reconstructions, Dhariwal & Nichol's, Tong et al.'s, DiT's; ResNets.

    Each with what its file does not say.
    """
    for name in EDM:
        url = f"{NVIDIA}/edm/pretrained/edm-{name}.pkl"
        yield _network(f"edm-{name}", url, "EDM", "CC BY-NC-SA 4.0", {})
    for name, stds in EDM2.items():
        for std in stds.split():
            url = f"{NVIDIA}/edm2/posthoc-reconstructions/edm2-{name}-{std}.pkl"
            yield _network(f"edm2-{name}-{std}", url, "EDM2", "CC BY-NC-SA 4.0", {})
    for name, told in _openai():
        url = f"{OPENAI}/{name}.pt"
        yield _network(f"adm-{name.replace('_', '-')}", url, "Dhariwal & Nichol", "MIT", told)
    for file in RESNETS:
        name, url = f"{file.partition('-')[0]}-imagenet", f"{TORCHVISION}/{file}"
        yield _network(name, url, "torchvision", "BSD-3-Clause", {"shape": [3, 512, 512]})
    flow = {"shape": [3, 32, 32], "head_channels": 64}
    for name in ("otcfm", "cfm", "fm"):
        url = f"{TONG}/{name}_cifar10_weights_step_400000.pt"
        yield _network(f"{name}-cifar10", url, "Tong et al.", "MIT", flow)
    for side in (256, 512):
        url = f"{DIT}/DiT-XL-2-{side}x{side}.pt"
        yield _network(f"dit-xl-2-{side}x{side}", url, "DiT", "CC BY-NC 4.0", {"num_heads": 16})


def _openai() -> Iterator[tuple[str, dict]]:
    """As their README's flags have it; a classifier's schedule is that of its diffusion."""
    heads: dict = {"head_channels": 64, "attention_order": "legacy"}
    for side in (64, 128, 256, 512):
        schedule = "cosine" if side == 64 else "linear"
        told = {"shape": [3, side, side], "schedule": schedule, **heads}
        yield f"{side}x{side}_classifier", told
        if side == 64:
            told = {**told, "attention_order": "new"}
        elif side == 128:
            told = {k: v for k, v in told.items() if k != "head_channels"} | {"num_heads": 4}
        yield f"{side}x{side}_diffusion", told
        if side == 256:
            yield "256x256_diffusion_uncond", told
            for name in ("bedroom", "cat", "horse", "horse_nodropout"):
                yield f"lsun_{name}", told


def _network(name: str, url: str, of: str, licence: str, told: dict) -> Asset:
    file = url.rpartition("/")[2]
    return Asset(name, file, url, None, None, f"adopt: a network of {of}", licence, told)
