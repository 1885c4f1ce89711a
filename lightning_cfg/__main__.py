"""`python -m lightning_cfg`, and the command `lightning_cfg`: the verbs, and each of them."""

import sys

from lightning_cfg import __version__, cli
from lightning_cfg.config.files import shipped
from lightning_cfg.errors import UserError, did_you_mean

VERBS = {
    "fit": "train a model, a classifier or a refinement",
    "encode": "images become latents, by a VAE",
    "generate": "samples of seeds, under a guidance method",
    "pair": "samples and their nearest real neighbours",
    "refine": "samples along a flow to where their neighbours are",
    "evaluate": "samples become a table of metrics beside real data",
    "trace": "how far trajectories run from decision boundaries",
    "tune": "settings of a guidance method, and the one that errs least",
    "study": "the whole way from one file, and a report",
    "adopt": "a network that others have published becomes a run",
    "export": "samples and networks in the forms that other programs read",
    "sweep": "a grid of runs from a W&B sweep file, without W&B",
    "assets": "weight files of feature extractors and published networks",
}
OWN = ("adopt", "export", "sweep", "assets")  # with a command line of their own


def main(words: list[str] | None = None) -> None:
    """List the verbs, or run one of them: `lightning_cfg VERB --config FILE [key=value ...]`."""
    words = sys.argv[1:] if words is None else words
    with cli.answered():
        if not words or words[0] in ("-h", "--help"):
            print(_listed())
            return
        if words[0] == "--configs":
            print(*shipped(), sep="\n")
            return
        if words[0] in ("-V", "--version"):
            print(f"lightning_cfg {__version__}")
            return
        verb, *rest = words
        if verb not in VERBS:
            raise UserError(f"no verb '{verb}'; {did_you_mean(verb, VERBS)}")
    (cli.main_of if verb in OWN else cli.main)(verb, rest)


def _listed() -> str:
    width = max(map(len, VERBS))
    return "\n".join(
        [
            "Study guidance in diffusion models, and repair what it does to the samples.",
            "",
            "usage: python -m lightning_cfg VERB --config FILE [key=value ...]",
            "",
            *(f"  {verb:{width}}  {what}" for verb, what in VERBS.items()),
            "",
            "FILE is a config, or one of the package's by its name: --configs lists those.",
            "VERB --help says what a verb's keys are, --version tells the version.",
        ]
    )


if __name__ == "__main__":
    main()
