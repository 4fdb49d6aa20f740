"""The graph of an image against circuit-tracer's own attribution, influence, pruning, scores (`make test-interop`)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import clt_lightning as cl
from clt_lightning.analysis.circuits import attribute, model_of_image
from clt_lightning.analysis.circuits.virtual import rank_correlation
from clt_lightning.transcoder.files import export
from tests.interop.test_interop import python_with

pytestmark = pytest.mark.interop

NODES, EDGES = 0.8, 0.98


def made_clt(trained: str | None) -> cl.CrossLayerTranscoder:
    """Random weights on the demo's CLIP; or those of a run's folder, where CLT_INTEROP_RUN names one."""
    if trained is not None:
        return cl.open_run(trained).transcoder
    clt = cl.CrossLayerTranscoder(4, 96, 128, cl.BatchTopK(6), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in clt.W_dec:
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
        clt.b_dec.copy_(torch.randn(clt.b_dec.shape, generator=generator) * 0.05)
        clt.b_enc.copy_(torch.randn(clt.b_enc.shape, generator=generator) * 0.1)
    clt(torch.randn(4, 500, 96, generator=generator))  # BatchTopK's threshold
    return clt.eval()


@pytest.mark.parametrize("seed", [0, 1])
def test_graph_of_an_image(seed: int, tmp_path: Path) -> None:
    python = python_with("circuit_tracer")
    clip = cl.FrozenCLIP(pretrained="demo")
    clt = made_clt(os.environ.get("CLT_INTEROP_RUN"))
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 3, 6, 6, generator=generator)
    image = torch.nn.functional.interpolate(coarse, (clip.image_size,) * 2, mode="bilinear")[0]
    targets = [cl.Target(f"t{i}", torch.randn(clip.embed_dim, generator=generator)) for i in range(2)]
    weights = [0.7, 0.3]
    graph = attribute(clip, clt, image, targets, weights=weights, max_nodes=20_000, dtype=torch.float32)

    seen = model_of_image(clip, clt, image).seen
    visual = clip.model.visual
    tensors = {k: v.float().contiguous() for k, v in visual.state_dict().items()}
    tensors["root"] = seen.streams[0][0].contiguous()
    tensors["directions"] = torch.stack([t.direction * t.scale for t in targets]) / seen.embedding.norm()
    save_file({k: v.clone() for k, v in tensors.items()}, tmp_path / "tower.safetensors")
    block = visual.transformer.resblocks[0]
    case = {
        "layers": clip.n_layers,
        "heads": block.attn.num_heads,
        "quick_gelu": type(block.mlp.gelu).__name__ == "QuickGELU",
        "weights": weights,
        "nodes": NODES,
        "edges": EDGES,
    }
    (tmp_path / "case.json").write_text(json.dumps(case))
    export(clt, tmp_path / "export", "circuit-tracer", {"clip": {"name": "demo"}})
    command = [python, str(Path(__file__).with_name("grapher.py")), str(tmp_path)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    scores = json.loads(done.stdout.splitlines()[-1])
    theirs = load_file(tmp_path / "found.safetensors")

    # the same features fire; theirs keeps those of the last layer that no read-out sees
    nodes = graph.nodes
    mine = nodes.of("feature")
    table = torch.stack([nodes.layer[mine], nodes.position[mine], nodes.feature[mine]], 1)
    every = {tuple(row): i for i, row in enumerate(theirs["active"].tolist())}
    columns = torch.tensor([every.pop(tuple(row)) for row in table.tolist()])
    assert all(layer == clip.n_layers - 1 and position > 0 for layer, position, _ in every)
    assert float(theirs["influence"][list(every.values())].abs().max()) == 0
    np.testing.assert_allclose(theirs["codes"][columns], nodes.activation[mine], rtol=1e-3, atol=1e-4)

    # adjacency, influence, scores
    n_theirs = len(theirs["active"])
    others = torch.arange(n_theirs, len(theirs["adjacency"]))
    order = torch.cat([columns, others])
    adjacency = theirs["adjacency"][order][:, order]
    kept = nodes.of("feature", "error", "input", "target")
    ours = graph.edges.dense()[kept][:, kept].float()
    assert ours.shape == adjacency.shape
    large = adjacency.abs() > 0.01 * adjacency.abs().amax(1, keepdim=True).clamp(min=1e-9)
    off = ((ours - adjacency).abs() / adjacency.abs().clamp(min=1e-9))[large]
    influence = theirs["influence"][order]
    own = torch.where(nodes.of("target"), 0.0, nodes.influence)[kept].float()
    order_of_both = rank_correlation(influence, own)
    said = {
        "edges above 1 %": int(large.sum()),
        "worst": float(off.max()),
        "influence": order_of_both,
        "scores": [scores, graph.scores.replacement, graph.scores.completeness],
    }
    print(json.dumps(said))
    assert float(off.max()) < 1e-3
    assert order_of_both > 0.99
    assert scores["replacement"] == pytest.approx(graph.scores.replacement, abs=1e-3)
    assert scores["completeness"] == pytest.approx(graph.scores.completeness, abs=1e-3)

    # pruning keeps the same nodes
    pruned = graph.prune(NODES, EDGES).nodes
    keeps = {(n.kind, n.layer, n.position, n.feature) for n in pruned if n.kind in ("feature", "error")}
    theirs_keep = theirs["kept"][order].bool()
    some = [node for node, keep in zip((n for n in nodes if bool(kept[n.index])), theirs_keep.tolist()) if keep]
    wanted = {(n.kind, n.layer, n.position, n.feature) for n in some if n.kind in ("feature", "error")}
    # a node at the threshold may fall on either side of it by rounding
    assert len(keeps ^ wanted) <= 0.01 * len(wanted) + 1
