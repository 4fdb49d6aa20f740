"""Makes the graph of an image with circuit-tracer's own attribution, influence, pruning and scores.

    python grapher.py FOLDER

Run by a Python that has circuit-tracer, without this package. FOLDER holds `export/` (a cross-layer transcoder),
`tower.safetensors` (an image tower's weights under open_clip's names, the stream at the entry of block 0, and each
target's direction over the embedding's norm) and `case.json` (heads, activation, weights of targets, thresholds). The
tower is written here once more, for autograd, with attention patterns and norm scales detached; circuit-tracer's
`AttributionContext` hooks into it as into a language model. Writes `found.safetensors` and prints the scores.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from circuit_tracer.attribution.context_transformerlens import AttributionContext
from circuit_tracer.attribution.targets import LogitTarget
from circuit_tracer.graph import Graph, compute_graph_scores, compute_node_influence, prune_graph
from circuit_tracer.transcoder.cross_layer_transcoder import load_clt
from circuit_tracer.utils.tl_nnsight_mapping import UnifiedConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformer_lens.hook_points import HookedRootModule, HookPoint

Tensors = dict[str, Tensor]


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hook_in, self.hook_out = HookPoint(), HookPoint()


class Block(nn.Module):
    """A pre-norm block, patterns and norm scales detached, the MLP's output cut off from its input."""

    def __init__(self, tensors: Tensors, layer: int, heads: int, quick: bool) -> None:
        super().__init__()
        start = f"transformer.resblocks.{layer}."
        self.w = {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
        self.heads, self.quick, self.mlp = heads, quick, Mlp()

    def forward(self, stream: Tensor) -> Tensor:
        w = self.w
        normed = layer_norm(stream, w["ln_1.weight"], w["ln_1.bias"])
        q, k, v = F.linear(normed, w["attn.in_proj_weight"], w["attn.in_proj_bias"]).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        pattern = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1).detach()
        mixed = (pattern @ v).transpose(1, 2).flatten(2)
        stream = stream + F.linear(mixed, w["attn.out_proj.weight"], w["attn.out_proj.bias"])
        x = self.mlp.hook_in(layer_norm(stream, w["ln_2.weight"], w["ln_2.bias"]))
        hidden = F.linear(x, w["mlp.c_fc.weight"], w["mlp.c_fc.bias"])
        active = hidden * torch.sigmoid(1.702 * hidden) if self.quick else F.gelu(hidden)
        y = F.linear(active, w["mlp.c_proj.weight"], w["mlp.c_proj.bias"]).detach().requires_grad_()
        result: Tensor = stream + self.mlp.hook_out(y)
        return result


class Unembed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hook_pre = HookPoint()


class Tower(HookedRootModule):  # type: ignore[misc]
    feature_input_hook, feature_output_hook = "mlp.hook_in", "mlp.hook_out"

    def __init__(self, tensors: Tensors, layers: int, heads: int, quick: bool) -> None:
        super().__init__()
        self.tensors = tensors
        self.hook_embed = HookPoint()
        self.blocks = nn.ModuleList(Block(tensors, layer, heads, quick) for layer in range(layers))
        self.unembed = Unembed()
        self.setup()

    def forward(self, root: Tensor) -> Tensor:
        stream = self.hook_embed(root)
        for block in self.blocks:
            stream = block(stream)
        normed = layer_norm(stream, self.tensors["ln_post.weight"], self.tensors["ln_post.bias"])
        result: Tensor = self.unembed.hook_pre(normed)
        return result


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt().detach()
    return centred * scale * weight + bias


def main(folder: Path) -> None:
    case = json.loads((folder / "case.json").read_text())
    tensors = load_file(folder / "tower.safetensors")
    root, directions = tensors["root"], tensors["directions"]  # (positions, d), (targets, embed_dim)
    tower = Tower(tensors, case["layers"], case["heads"], case["quick_gelu"])
    seen: dict[str, list[Tensor]] = {"in": [], "out": []}
    hooks: list[Any] = []
    for layer in range(case["layers"]):
        for name in ("in", "out"):
            keep = lambda acts, hook, at=seen[name]: at.append(acts.detach()[0])  # noqa: E731
            hooks.append((f"blocks.{layer}.mlp.hook_{name}", keep))
    with tower.hooks(fwd_hooks=hooks):
        tower(root[None].clone().requires_grad_())
    config = yaml.safe_load((folder / "export" / "config.yaml").read_text())
    names = {key: config[key] for key in ("feature_input_hook", "feature_output_hook", "scan")}
    clt = load_clt(str(folder / "export"), **names, device=torch.device("cpu"), dtype=torch.float32)
    with torch.no_grad():
        parts = clt.compute_attribution_components(torch.stack(seen["in"]), zero_positions=slice(0, 0))
    features = parts["activation_matrix"].coalesce()
    errors = torch.stack(seen["out"]) - parts["reconstruction"]
    context = AttributionContext(
        features,
        errors,
        root,
        parts["decoder_vecs"],
        parts["encoder_vecs"],
        parts["encoder_to_decoder_map"],
        parts["decoder_locations"],
        torch.zeros(1),
    )
    layer_of, position_of, _ = features.indices()
    n, n_pos, n_targets = features._nnz(), len(root), len(directions)
    size = n + (case["layers"] + 1) * n_pos + n_targets
    adjacency = torch.zeros(size, size)
    batch = 64
    with context.install_hooks(tower):
        tower(root.expand(batch, -1, -1).clone().requires_grad_())
        inject = directions @ tensors["proj"].T
        rows = context.compute_batch(torch.full((n_targets,), case["layers"]), torch.zeros(n_targets).long(), inject)
        adjacency[-n_targets:, : rows.shape[1]] = rows
        for some in torch.arange(n).split(batch):
            rows = context.compute_batch(layer_of[some], position_of[some], parts["encoder_vecs"][some])
            adjacency[some, : rows.shape[1]] = rows
    width, heads = root.shape[1], case["heads"]
    weights = torch.tensor(case["weights"])
    graph = Graph(
        input_string="image",
        input_tokens=torch.zeros(n_pos),
        active_features=features.indices().T,
        adjacency_matrix=adjacency,
        cfg=UnifiedConfig(case["layers"], width, width // heads, heads, 4 * width, n_targets, "", "", ""),
        selected_features=torch.arange(n),
        activation_values=features.values(),
        logit_targets=[LogitTarget(f"t{i}", i) for i in range(n_targets)],
        logit_probabilities=weights,
        scan="made",
    )
    replacement, completeness = compute_graph_scores(graph)
    logit_weights = torch.zeros(size)
    logit_weights[-n_targets:] = weights
    kept = prune_graph(graph, case["nodes"], case["edges"])
    found = {
        "active": features.indices().T.contiguous(),
        "codes": features.values(),
        "adjacency": adjacency,
        "influence": compute_node_influence(adjacency, logit_weights),
        "kept": kept.node_mask.to(torch.uint8),
        "kept_edges": kept.edge_mask.to(torch.uint8),
    }
    save_file({name: t.contiguous() for name, t in found.items()}, folder / "found.safetensors")
    print(json.dumps({"replacement": replacement, "completeness": completeness}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
