"""Where in a run directory its outputs lie."""

LAST = "checkpoints/last.ckpt"
SAMPLES = "samples/samples.safetensors"
TRAJECTORIES = "samples/trajectories.safetensors"
SHEET = ("figures/samples.png", "figures/samples.pdf")
PAIRS = "pairs/pairs.safetensors"
LATENTS = "latents/latents.zip"
METRICS = "metrics/metrics.json"
RIGHT = "metrics/right.json"  # of each class how many samples a classifier has read as it

# of `trace`
SUMMARY = "metrics/trajectories.json"
CURVES = "metrics/curves.json"
BOUNDARIES = "metrics/boundaries.json"
TUNED = "metrics/tuned.json"  # of `tune`, what is chosen; what was tried
TRIED = "metrics/tried.json"
EVALUATIONS = "metrics/evaluations.csv"  # of a training
