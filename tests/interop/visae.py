"""Measures an autoencoder with ViSAEBench's own metrics; run by a Python that has it and what this package needs.

    python visae.py FOLDER

FOLDER holds `transcoder/` and `given.safetensors` (x: (images, patches, d), labels). Prints a line of JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safetensors.torch import load_file
from visaebench.core import SAEInterface
from visaebench.metrics.concept_detection import SparseProbing
from visaebench.metrics.reconstruction import FVU

from clt_lightning.analysis.visaebench import ViSAEBenchAdapter
from clt_lightning.transcoder import CrossLayerTranscoder

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    given = load_file(folder / "given.safetensors")
    sae = ViSAEBenchAdapter(CrossLayerTranscoder.from_pretrained(folder / "transcoder"), layer=1)
    tokens = given["x"].flatten(0, 1)
    fvu = FVU().compute(sae, tokens, device="cpu", dict_size=sae.clt.n_features)
    found = {"protocol": isinstance(sae, SAEInterface), "fvu": fvu.value, **fvu.metadata}
    for name in ("labels", "others"):
        probe = SparseProbing(k_values=[1, 4]).compute(sae, given["x"], device="cpu", labels=given[name].numpy())
        found[name] = probe.metadata["k_accuracies"][4]
    print(json.dumps(found))
