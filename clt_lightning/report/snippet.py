"""What "copy as Python" on a feature's card copies."""

from __future__ import annotations

from pathlib import Path

_TEXT = """import clt_lightning as cl
from clt_lightning.analysis import load_features

run = cl.open_run({run})
layer, feature = LAYER, FEATURE

features = load_features(run.folder)
features.layers[layer]["top_image"][feature]                # images with its largest codes, places in features.keys
{name: values[layer, feature] for name, values in features.stats.items()}

encoder = run.transcoder.W_enc[layer][feature]              # (d_model,): what it reads
decoder = run.transcoder.W_dec[layer][feature]              # (targets, d_model): what it writes: its own layer first

batch = next(iter(run.batches({split}, limit=8)))
codes = run.transcoder.encode(run.clip.capture(batch["image"]).x).dense()[layer, :, feature]    # (tokens,)

# without it: which predictions change?
off = cl.Edit(layer, feature, "scale", 0.0)
cl.steer(run.clip, run.transcoder, [batch], [off], run.head, run.datamodule.classnames)
"""


def python_of(run: Path, split: str) -> str:
    """The text for a run's features, with LAYER and FEATURE for the script to fill in."""
    return _TEXT.replace("{run}", repr(str(run))).replace("{split}", repr(split))
