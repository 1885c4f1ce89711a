"""What a study calls published: numbers of a paper that stand beside its own."""


def published(
    *,
    source: str,
    metric: str,
    rows: dict[str, dict[str, float]],
    method: str | None = None,
) -> None:
    """The keys of one entry of a study's `published`.

    source  the paper and its table, as the report names them
    metric  the column of ours beside which the numbers stand, such as fid: of fewer samples than
            the paper's ours bears their number, and stands there all the same
    rows    {before, all, dedicated or a variant: {guidance scale: number}}
    method  one of the study's `methods`; left out, its only one
    """
