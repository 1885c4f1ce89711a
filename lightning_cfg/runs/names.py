"""Where in a run directory its outputs lie."""

SAMPLES = "samples/samples.safetensors"


TRAJECTORIES = "samples/trajectories.safetensors"


SHEET = ("figures/samples.png", "figures/samples.pdf")


# of `trace`
SUMMARY = "metrics/trajectories.json"
CURVES = "metrics/curves.json"
BOUNDARIES = "metrics/boundaries.json"
