"""The learning rate over a training, as a share of its largest."""


def share(
    step: int,
    images: int,
    *,
    warmup: int = 0,
    warmup_images: int = 0,
    decay_after: int | None = None,
) -> float:
    """min((step + 1) / warmup, 1) min(images / warmup_images, 1) / sqrt(max(step / after, 1)).

    after   decay_after
    step    steps before this one, and the images seen in them
    The last factor is the inverse square root of Karras et al. (2024, app. A.1), where the first
    step, before which nothing was seen, has rate 0 by its warm-up in images.
    """
    found = min(1.0, (step + 1) / max(1, warmup))
    if warmup_images:
        found *= min(1.0, images / warmup_images)
    return found if decay_after is None else found / max(1.0, step / decay_after) ** 0.5
