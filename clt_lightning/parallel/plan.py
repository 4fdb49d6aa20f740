"""What a step of training costs on paper: memory, bytes moved, operations and time, for DDP and for sharded features.

Plain arithmetic on the shapes, with stated rates; docs/scaling.md explains every line. Nothing here is measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from clt_lightning.core.errors import UserError
from clt_lightning.core.people import size
from clt_lightning.core.table import Column, lay_out

FP32, GB = 4, 1e9


@dataclass(frozen=True)
class Shape:
    """A transcoder and its backbone.

    Attributes:
        n_layers, d_model: of the transcoder: its sites, and their width.
        positions: tokens of an image in the backbone, [CLS] included.
        n_features: F, features of each layer.
        k: active features of a token in each layer.
        cross_layer: whether a feature writes to all later layers, or to its own only.
        used: tokens of an image that a step learns from.
        tower: blocks of the backbone that a step runs; None: as many as there are sites.
    """

    n_layers: int
    d_model: int
    positions: int
    n_features: int
    k: int = 64
    cross_layer: bool = True
    used: int | None = None
    tower: int | None = None

    @property
    def blocks(self) -> int:
        """Decoder blocks `(F, d_model)`."""
        return self.n_layers * (self.n_layers + 1) // 2 if self.cross_layer else self.n_layers

    @property
    def divided(self) -> int:
        """Weights that are divided with the features: encoders, their biases, decoders."""
        return self.n_features * ((self.n_layers + self.blocks) * self.d_model + self.n_layers)

    @property
    def shared(self) -> int:
        """Weights that every process holds: decoder biases."""
        return self.n_layers * self.d_model


@dataclass(frozen=True)
class Machine:
    """Rates that a step reaches, in units per second, and what a GPU holds. Defaults: an H100 of 80 GB, cautiously.

    Attributes:
        memory: bytes of a GPU.
        flops: operations of large bf16 products.
        bandwidth: bytes of a GPU's memory in long runs.
        gather: bytes of decoder rows picked out by sparse codes (some of them hit the cache).
        link: bytes that a GPU sends within a machine.
        far_link: bytes that a GPU sends to other machines.
        node: GPUs of a machine.
    """

    memory: float = 80 * GB
    flops: float = 500e12
    bandwidth: float = 2.8e12
    gather: float = 3.5e12
    link: float = 300e9
    far_link: float = 40e9
    node: int = 8


@dataclass(frozen=True)
class Plan:
    """A step on one GPU. Bytes moved are what a GPU sends; seconds are sums, as nothing overlaps."""

    gpus: int
    feature: int
    tokens: int
    state_bytes: float
    activation_bytes: float
    reconstruction_bytes: float
    candidate_bytes: float
    gradient_bytes: float
    flop: float
    compute_seconds: float
    link_seconds: float
    checkpoint_bytes: float

    @property
    def data(self) -> int:
        """Groups that see different batches."""
        return self.gpus // self.feature

    @property
    def memory(self) -> float:
        return self.state_bytes + self.activation_bytes

    @property
    def moved(self) -> float:
        return self.reconstruction_bytes + self.candidate_bytes + self.gradient_bytes

    @property
    def seconds(self) -> float:
        return self.compute_seconds + self.link_seconds

    @property
    def name(self) -> str:
        return "DDP" if self.feature == 1 and self.gpus > 1 else f"{self.data} x {self.feature}"


def all_reduce(size: float, processes: float) -> float:
    """Bytes that each process sends for the sum of `size` bytes: 2 (n - 1) / n of them, as rings and trees do."""
    return 2 * (processes - 1) / processes * size


def _seconds(size: float, processes: int, in_machine: int, machine: Machine) -> float:
    """Time of an all-reduce: within machines or, if longer, between them, where each process sends its share."""
    within = all_reduce(size, processes) / machine.link if in_machine > 1 else 0.0
    between = all_reduce(size, processes / in_machine) / in_machine / machine.far_link
    return max(within, between)


def make_plan(shape: Shape, machine: Machine, gpus: int, feature: int, tokens: int) -> Plan:
    """One way to train on so many GPUs.

    Args:
        shape: transcoder and backbone.
        machine: rates.
        gpus: G.
        feature: R, processes that share the features; 1 is DDP.
        tokens: of a step, over all GPUs.

    Raises:
        UserError: R does not divide G or F.
    """
    if gpus % feature or shape.n_features % feature:
        raise UserError(f"feature={feature} must divide {gpus} GPUs and {shape.n_features} features")
    L, d, F, k = shape.n_layers, shape.d_model, shape.n_features // feature, shape.k
    data = gpus // feature
    n = -(-tokens // data)  # tokens of a group: each of its GPUs reads all of them
    weights = shape.divided / feature + shape.shared
    site = L * n * d * FP32  # one set of activations, x or y or y_hat
    codes = L * n * k / feature

    clip_tokens = n * shape.positions / (shape.used or shape.positions)
    depth = shape.tower or L
    clip = clip_tokens * depth * (24 * d * d + 4 * shape.positions * d)
    encoder = 2 * L * d * F * n
    # decoder forward, and twice backward; encoder backward
    sparse = 2 * n * k * (3 * shape.blocks + 2 * L) * d / feature
    rows = n * k * shape.blocks * d * FP32 / feature
    compute = (
        (clip + encoder) / machine.flops
        + 3 * rows / machine.gather  # the decoder's forward, code gradient and weight gradient
        + (2 * L * n * F * FP32 + 4 * site) / machine.bandwidth  # pre-activations written and read; the loss
        + 28 * weights / machine.bandwidth  # Adam: gradient, weight and two moments read, three of them written
    )
    reconstruction = all_reduce(site, feature)
    own = L * n * min(k, F) * FP32
    candidates = (feature - 1) * own
    gradients = all_reduce(weights * FP32, data)
    # neighbours share features: a feature group lies in as few machines as can be, a data group has the rest
    near_features = min(feature, machine.node)
    near_data = min(max(1, machine.node // feature), data)
    links = (
        _seconds(site, feature, near_features, machine)
        + max(candidates / machine.link, (feature / near_features - 1) * own / machine.far_link)
        + _seconds(weights * FP32, data, near_data, machine)
    )
    return Plan(
        gpus=gpus,
        feature=feature,
        tokens=n,
        state_bytes=16 * weights + 2 * 12 * depth * d * d,  # weights, gradients, two moments; the backbone in bf16
        activation_bytes=5 * site + 2 * n * F * FP32 + 20 * codes,
        reconstruction_bytes=reconstruction,
        candidate_bytes=candidates,
        gradient_bytes=gradients,
        flop=clip + encoder + sparse,
        compute_seconds=compute,
        link_seconds=links,
        checkpoint_bytes=12 * (shape.divided + shape.shared),
    )


def cascade_seconds(shape: Shape, machine: Machine, feature: int, images: int) -> float:
    """What the cascade's terms add to a step: some images through the untouched and through the replaced CLIP.

    Args:
        shape: transcoder and backbone.
        machine: rates.
        feature: R, processes that share the features.
        images: images of a group's batch that the terms are computed on.
    """
    L, d, P, F = shape.n_layers, shape.d_model, shape.positions, shape.n_features // feature
    n = images * P  # all positions, whatever a step learns from
    attention = 8 * d * d + 4 * P * d
    # the clean forward with its MLPs; attention alone in the replaced one, forward and backward to its inputs
    clip = n * L * (attention + 16 * d * d + 2 * attention)
    rows = n * shape.k * shape.blocks * d * FP32 / feature
    site = L * n * d * FP32
    return (
        (clip + 2 * L * d * F * n) / machine.flops
        + 3 * rows / machine.gather
        + (2 * L * n * F * FP32 + 4 * site + 12 * shape.divided / feature) / machine.bandwidth  # gradients added up
        + _seconds(2 * site, feature, min(feature, machine.node), machine)
    )


@dataclass(frozen=True)
class UnitsCost:
    """What sparse attention adds to a step, on every GPU.

    Attributes:
        weights: of the units.
        memory: bytes: weights, gradients and moments, and what a step keeps.
        seconds: of a step.
    """

    weights: int
    memory: float
    seconds: float


def units_cost(shape: Shape, machine: Machine, units: int, images: int, moves: bool = True) -> UnitsCost:
    """Sparse attention that moves by the model's own patterns, or an autoencoder of attention, beside the transcoder.

    Args:
        shape: transcoder and backbone.
        machine: rates.
        units: of each attention layer.
        images: of a GPU's batch.
        moves: whether they are units; an autoencoder's features move nothing.
    """
    depth, d, P = shape.tower or shape.n_layers, shape.d_model, shape.positions
    n, weights = images * P, depth * units * (2 * d + 1) + depth * d
    codes = depth * n * units * FP32
    # reading and moving, forward and twice backward; the model's patterns once more
    pattern = (6 * P * units + 4 * d * d + 4 * P * d) if moves else 0
    flop = depth * n * (6 * d * units + pattern)
    seconds = flop / machine.flops + (6 * codes + 28 * weights) / machine.bandwidth
    return UnitsCost(weights, 16 * weights + 3 * codes, seconds)


def all_plans(shape: Shape, machine: Machine, gpus: int, tokens: int) -> list[Plan]:
    """Every division of so many GPUs, from DDP to one feature group."""
    sizes = [r for r in range(1, gpus + 1) if gpus % r == 0 and shape.n_features % r == 0]
    return [make_plan(shape, machine, gpus, r, tokens) for r in sizes]


def best(plans: list[Plan], machine: Machine) -> Plan | None:
    """The fastest that fits, with a tenth of the memory left for the allocator and the libraries; None if none fits."""
    fitting = [p for p in plans if p.memory <= 0.9 * machine.memory]
    return min(fitting, key=lambda p: p.seconds, default=None)


def table(rows: list[list[str]]) -> str:
    """A Markdown table, columns aligned; the first row is the head."""
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.rjust(w) for cell, w in zip(row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|", *lines[1:]])


def plan_table(plans: list[Plan], chosen: Plan | None, machine: Machine, width: int | None = None) -> str:
    """All divisions of a number of GPUs, one a line; cut between columns where a line would be longer than `width`."""
    notes = ["<- take this" if p is chosen else "too large" if p.memory > 0.9 * machine.memory else "" for p in plans]
    columns = [
        Column("memory", [size(p.memory) for p in plans], 10),
        Column("state", [size(p.state_bytes) for p in plans], 10),
        Column("y_hat moved", [size(p.reconstruction_bytes) for p in plans], 13),
        Column("candidates", [size(p.candidate_bytes) for p in plans], 12),
        Column("gradients", [size(p.gradient_bytes) for p in plans], 11),
        Column("TFLOP", [f"{p.flop / 1e12:.2f}" for p in plans], 10),
        Column("compute ms", [f"{1e3 * p.compute_seconds:.1f}" for p in plans], 12),
        Column("links ms", [f"{1e3 * p.link_seconds:.1f}" for p in plans], 10),
        Column("step ms", [f"{1e3 * p.seconds:.1f}" for p in plans], 10),
        Column("", notes, 14, left=True),
    ]
    return "\n".join(lay_out(Column("groups x R", [p.name for p in plans]), columns, width))


#: The image towers of docs/scaling.md: layers, width, positions
TOWERS = {"ViT-B/32": (12, 768, 50), "ViT-L/14": (24, 1024, 257)}
DOCUMENTED_TOKENS = 32768


def documented_tables() -> str:
    """The tables of docs/scaling.md, as Markdown."""
    machine = Machine()
    parts = []
    for name, (layers, width, positions) in TOWERS.items():
        rows = [["F", "weights", "GPUs", "DDP: memory", "moves", "step ms", "best", "memory", "moves", "step ms"]]
        for thousands in (6, 24, 48, 96, 128):
            shape = Shape(layers, width, positions, 1024 * thousands)
            for gpus in (1, 4, 8, 16, 64):
                plans = all_plans(shape, machine, gpus, DOCUMENTED_TOKENS)
                ddp, chosen = plans[0], best(plans, machine)
                row = [f"{thousands}k", f"{shape.divided / 1e9:.2f} G", str(gpus)]
                row += [size(ddp.memory), size(ddp.moved), f"{1e3 * ddp.seconds:.0f}"]
                if chosen is None:
                    row += ["none fits", "", "", ""]
                else:
                    row += [chosen.name, size(chosen.memory), size(chosen.moved), f"{1e3 * chosen.seconds:.0f}"]
                rows.append(row)
        parts.append(f"### {name}\n\n{table(rows)}")
    return "\n\n".join(parts) + "\n"
