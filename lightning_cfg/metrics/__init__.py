"""One function per metric: samples of one class, or of all, against real ones.

A metric asks by name for what it needs, and the verb `evaluate` passes exactly that:

    x           (n, *shape)  float, the samples; images as their 8-bit PNGs have them
    y           (m, *shape)  the real points that they are compared with
    bank        (M, *shape)  the real points that were there to be trained on
    c           int          the class, or (n,) where all are scored together
    truth       the exact mixture: .log_density, .logits, .sample
    quantile    the exact quantile(u, c) of one-dimensional data, (m,) -> (m,)
    logits      (n, K)       of x by a given classifier of clean samples
    cosine      (n,)         of x and its own prompt, by a given classifier over prompts

and, once for each feature space that is asked for,

    features_x, features_y               (., d) float32, of x and y
    features_held_out, features_bank     the same of both splits of the real data
    moments_x, moments_y                 Moments of x's and y's, in float64
    head_logits                          (n, K) of x by the space's own head

It returns its columns by name, and `@better` above it declares what each means. Keyword-only
parameters are numbers with defaults. A metric of your own is one more such function. What the real
points alone decide is worked out once for each tensor, so hand over the same one for every row of a
table.
"""

from lightning_cfg.metrics.distances import frechet_features, frechet_infinity, kernel_distance
from lightning_cfg.metrics.judged import (
    class_accuracy,
    confidence,
    inception_score,
    text_alignment,
)
from lightning_cfg.metrics.manifold import (
    density_coverage,
    near_copies,
    nearest_train,
    precision_recall,
)
from lightning_cfg.metrics.needs import OF_A_SPACE as OF_A_SPACE
from lightning_cfg.metrics.needs import needs as needs
from lightning_cfg.metrics.points import (
    certainty,
    effective_targets,
    energy_distance,
    frechet,
    nearest_real,
    negative_log_density,
    outliers,
    recall,
    wasserstein,
    wrong_class,
)

__all__ = [
    "certainty",
    "class_accuracy",
    "confidence",
    "density_coverage",
    "effective_targets",
    "energy_distance",
    "frechet",
    "frechet_features",
    "frechet_infinity",
    "inception_score",
    "kernel_distance",
    "near_copies",
    "nearest_real",
    "nearest_train",
    "negative_log_density",
    "outliers",
    "precision_recall",
    "recall",
    "text_alignment",
    "wasserstein",
    "wrong_class",
]  # what a config can name

MIXTURE = (  # the default where the truth is known
    "wasserstein",
    "frechet",
    "energy_distance",
    "negative_log_density",
    "outliers",
    "wrong_class",
    "nearest_real",
    "recall",
    "effective_targets",
)
IMAGES = (
    "frechet_features",
    "class_accuracy",
    "confidence",
    "text_alignment",
    "nearest_real",
    "recall",
    "effective_targets",
)
