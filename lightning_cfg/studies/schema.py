"""What stands in the sections of a study."""

from typing import Annotated

from lightning_cfg.config import AtLeast, Between, Guidance, Metric, Real, Scales, Seed, Verb
from lightning_cfg.sampling.network import Networks
from lightning_cfg.studies.ranges import Range

FRESH = 1_000_000  # samples that are evaluated have seeds from here on, sources below
Fresh = Annotated[int, Between(1, FRESH)]

GIVEN = ("data", "seed", "run_dir", "force", "trust")  # by the study, to every verb


def _verb(name: str, *given: str) -> Verb:
    return Verb(f"lightning_cfg.verbs.{name}.{name}", without=(*given, *GIVEN))


Training = Annotated[dict, _verb("fit")]
Generation = Annotated[dict, _verb("generate", "models", "guidance", "n", "class_label")]
Pairing = Annotated[dict, _verb("pair", "sources", "n")]
Refining = Annotated[dict, _verb("refine", "flow", "samples")]
Evaluation = Annotated[dict, _verb("evaluate", "samples", "fresh")]
Tracing = Annotated[dict, _verb("trace", "samples")]


def method(
    *,
    models: Networks,
    guidance: Guidance,
    scales: Scales | None = None,
    generation: dict = {},
    ranges: dict[str, Range] = {},
) -> None:
    """A guidance with its networks.

    models      {model, weak, classifier, discriminator}: names in the study's `fits`, paths, or
                exact; with weights of its own: {path: base, weights: 100_000}
    scales      at which it is tried instead of the study's, as what is much for one is little for
                another
    generation  what is different from the study's `generation`, such as a sampler of fewer steps
                where the method takes more evaluations each
    ranges      {parameter: what it may be}, where the study has `tuning`: a list of values, or
                {min, max, log}; by its key in the guidance, such as of.phi or scale.sigma_low, or
                models.weak; a list of one value leaves it at that
    """


def tuning(
    *,
    settings: Annotated[int, Between(1, 10_000)] = 24,
    samples: Fresh = 2000,
    seed: Seed = 100,
    evaluations: Annotated[int, AtLeast(1)] | None = None,
    reference: str | None = None,
    at: Scales = [1.25, 1.5, 2.0],
    distance: Metric = {"name": "energy_distance"},
    error: Metric = {"name": "wrong_class"},
) -> None:
    """How every method's parameters are chosen, before anything of it is scored.

    settings     tried of each method: as it is written, and others drawn from its `ranges`; of a
                 grid that is no larger, all of it
    samples      of each setting and scale
    seed         of the networks, samples and real points that methods are tuned on, and of the
                 draw of settings: none of the seeds that are scored
    evaluations  of all networks together that a sample of each method is to take: its number of
                 steps is chosen so; left out, each has its sampler's own
    reference    the method whose distances are the limits; left out, the first one
    at           its scales of which they are
    distance     a metric of which lower is nearer
    error        what is to be small within the limits: the setting is chosen by its mean over
                 them, and methods are compared by it
    """


def discriminator(*, of: str, n: Fresh, fit: Training) -> None:
    """A noisy classifier of real data and a model's own samples.

    of   one of the study's `fits`, whose unguided samples it tells from real data
    n    of them
    fit  how it is trained, on the data set RealOrGenerated
    """


def variant(
    *,
    pairs: dict = {},
    flow: dict = {},
    refinement: dict = {},
    then: list[str] = [],
    after: str | None = None,
    reflow: str | None = None,
    scales: Scales | None = None,
) -> None:
    """Another way of pairing, training or refining, beside the study's own.

    pairs       keys of the study's `pairs`
    flow        keys of the study's `flow`
    refinement  keys of the study's `refinement`
    then        instead of a flow of its own, others in a row: variants by name, or `all`, the
                study's own; each is followed as it is by itself but for this one's `refinement`
    after       a variant, or `all`: this one's flow is trained on sources that have followed that
                one's, and follows it; so it learns to mend what that one leaves
    reflow      a variant, or `all`: this one's flow is trained on that one's sources and on where
                that one's flow takes them, see data `Reflow`: with model `OneStep` or `FewSteps`
                it is that flow's one step, or few
    scales      at which it is tried; left out, at all of the study's
    """


def published(
    *,
    source: str,
    metric: str,
    rows: dict[str, dict[str, Annotated[float, Real]]],
    method: str | None = None,
) -> None:
    """Numbers of a paper that stand beside the study's own.

    source  the paper and its table, as the report names them
    metric  the column of ours beside which the numbers stand, such as fid: of fewer samples than
            the paper's ours bears their number, and stands there all the same
    rows    {before, all, dedicated or a variant: {guidance scale: number}}
    method  one of the study's `methods`; left out, its only one
    """


Tuning = Annotated[dict, Verb("lightning_cfg.studies.schema.tuning")]
Method = Annotated[dict, Verb("lightning_cfg.studies.schema.method")]
Discriminator = Annotated[dict, Verb("lightning_cfg.studies.schema.discriminator")]
Variant = Annotated[dict, Verb("lightning_cfg.studies.schema.variant")]
Published = Annotated[dict, Verb("lightning_cfg.studies.schema.published")]
