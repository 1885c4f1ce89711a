"""The weight files that are known: of feature extractors, and published networks.

The Python of `dinov2_code` is Meta's, and is executed only when a DINOv2 network is built.
"""

from lightning_cfg.errors import UserError, did_you_mean
from lightning_cfg.weights.asset import Asset
from lightning_cfg.weights.networks import NVIDIA, networks

META = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14"
DINOV2_COMMIT = "7764ea0f912e53c92e82eb78a2a1631e92725fc8"
EDM = f"{NVIDIA}/edm/fid-refs"

# Of these only the Inception file publishes (the head of) its hash, in its name. The other hashes
# and sizes are those which many independent projects have written down for the same addresses.
# GitHub does not promise that a commit's zip keeps its bytes: should its hash change one day, a
# clone of the same commit does as well, by its path.
ASSETS = {
    asset.name: asset
    for asset in (
        Asset(
            name="inception",
            file="weights-inception-2015-12-05-6726825d.pth",
            url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
            "weights-inception-2015-12-05-6726825d.pth",
            size=95_628_359,
            sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
            needed_by="FID, KID, Inception score; precision and recall in Inception's features",
            licence="Apache-2.0",
        ),
        Asset(
            name="dinov2",
            file="dinov2_vitl14_pretrain.pth",
            url=f"{META}/dinov2_vitl14_pretrain.pth",
            size=1_217_586_395,
            sha256="d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
            needed_by="FD_DINOv2 (with dinov2_code)",
            licence="Apache-2.0",
        ),
        Asset(
            name="dinov2_registers",
            file="dinov2_vitl14_reg4_pretrain.pth",
            url=f"{META}/dinov2_vitl14_reg4_pretrain.pth",
            size=1_217_607_321,
            sha256="36e4deffbaef061a2576705b0c36f93621e2ae20bf6274694821b0b492551b51",
            needed_by="neighbours by DINOv2's CLS and patch mean (with dinov2_code)",
            licence="Apache-2.0",
        ),
        Asset(
            name="dinov2_code",
            file=f"dinov2-{DINOV2_COMMIT}.zip",
            url=f"https://github.com/facebookresearch/dinov2/archive/{DINOV2_COMMIT}.zip",
            size=3_001_681,
            sha256="04276715cddb29d45d05bff3a6fc132224dc27749b279ac98ad2ce4620e20d48",
            needed_by="dinov2, dinov2_registers: their networks, Python that is executed",
            licence="Apache-2.0; what it holds for Cell-DINO is CC BY-NC",
        ),
        *(
            Asset(
                name=name,
                file=f"{file}.npz",
                url=f"{EDM}/{file}.npz",
                size=None,
                sha256=None,
                needed_by=f"FID against EDM's statistics of {of}",
                licence="CC BY-NC-SA 4.0",
            )
            for name, file, of in (
                ("edm_cifar10", "cifar10-32x32", "CIFAR-10"),
                ("edm_imagenet64", "imagenet-64x64", "ImageNet at 64x64"),
                ("edm_ffhq64", "ffhq-64x64", "FFHQ at 64x64"),
                ("edm_afhqv2", "afhqv2-64x64", "AFHQv2 at 64x64"),
            )
        ),
        *(
            Asset(
                name=f"edm2_{of}",
                file=f"{of}.pkl",
                url=f"{NVIDIA}/edm2/dataset-refs/{of}.pkl",
                size=None,
                sha256=None,
                needed_by=f"FID and FD_DINOv2 against EDM2's statistics of ImageNet-{of[3:]}",
                licence="CC BY-NC-SA 4.0",
            )
            for of in ("img512", "img64")
        ),
        *networks(),
    )
}


__all__ = ["ASSETS", "Asset", "asset_of"]


def asset_of(name: str) -> Asset:
    """The asset of that name; UserError if there is none."""
    if name not in ASSETS:
        hint = did_you_mean(name, ASSETS, f"there are {listed()}")
        raise UserError(f"no asset is named {name!r}; {hint}")
    return ASSETS[name]


def listed() -> str:
    """The names of what is no network, and that there are networks too."""
    names = ", ".join(name for name, asset in ASSETS.items() if not asset.is_network)
    more = sum(asset.is_network for asset in ASSETS.values())
    return f"{names} and {more} networks (`python -m lightning_cfg.assets`)" if more else names
