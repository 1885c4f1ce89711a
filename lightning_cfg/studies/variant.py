"""What a study calls a variant: another way of pairing, training or refining, beside its own."""


def variant(
    *,
    pairs: dict = {},  # noqa: B006  default sections, never changed
    flow: dict = {},  # noqa: B006
    refinement: dict = {},  # noqa: B006
    scales: list[float] | None = None,
) -> None:
    """The keys of one entry of a study's `variants`: what is different from the study's own.

    pairs       keys of the study's `pairs`
    flow        keys of the study's `flow`
    refinement  keys of the study's `refinement`
    scales      at which it is tried; left out, at all of the study's
    """
