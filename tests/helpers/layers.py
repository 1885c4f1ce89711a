"""Which folders of the package may import which."""

VERBS = {
    "fit",
    "generate",
    "pair",
    "refine",
    "evaluate",
    "trace",
    "tune",
    "study",
    "sweep",
    "assets",
    "adopt",
    "encode",
    "export",
}
ORDER = [  # a folder may import those on its own line and on the lines above
    {"errors", "interfaces", "config"},
    {"diffusion", "runs", "latents"},
    {"sampling", "guidance", "nets", "data", "metrics", "refinement"},
    {"evaluation", "weights", "diffusers"},
    {"reports", "training"},
    {"studies"},
    {"verbs"},
    {"api"},
    {"cli"},
    VERBS | {"__main__", "__init__"},
]
