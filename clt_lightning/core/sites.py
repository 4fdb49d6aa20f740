"""Sites: the named tensors of a Vision Transformer, and which of them a transcoder reads and rebuilds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from clt_lightning.core.errors import UserError

#: Tensors of a block, in the order in which a forward makes them; `(images, positions, d_model)` each
BLOCK_SITES = ("resid_pre", "attn_in", "attn_z", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post")
#: Tensors that the model has once, after the last block: the tokens after the last norm, and the pooled embedding
FINAL_SITES = ("final_tokens", "final")
SITES = (*BLOCK_SITES, *FINAL_SITES)
#: The residual stream: what stands there holds what all earlier layers added
STREAM_SITES = ("resid_pre", "resid_mid", "resid_post")
SiteName = Literal[
    "resid_pre",
    "attn_in",
    "attn_z",
    "attn_out",
    "resid_mid",
    "mlp_in",
    "mlp_out",
    "resid_post",
    "final_tokens",
    "final",
]


def check_site(site: str, key: str = "") -> str:
    """The name of a site as it is.

    Raises:
        UserError: there is no such site.
    """
    if site not in SITES:
        raise UserError(f"{key and key + ': '}unknown site '{site}': choose one of {', '.join(SITES)}")
    return site


def order(site: str, layer: int) -> tuple[int, int]:
    """Sorts sites by the time at which a forward reaches them."""
    return (layer if site in BLOCK_SITES else 1 << 30, SITES.index(site))


@dataclass(frozen=True)
class Sites:
    """What a transcoder reads and what it rebuilds.

    Args:
        read: the site that its encoders read: `resid_pre`, `attn_in`, `attn_z`, `attn_out`, `resid_mid`, `mlp_in`,
            `mlp_out` or `resid_post` of a block, or `final_tokens` (after the last norm) or `final` (the pooled
            embedding), which a model has once. null: `mlp_in`, or `mlp_out` for the topology `sae`.
        write: the site that its decoders rebuild. null: `mlp_out` for `mlp_in`, else what is read.
        layers: blocks, ascending; negative ones count from the end. null: all of the backbone's.
    """

    read: SiteName | None = None
    write: SiteName | None = None
    layers: list[int] | None = None

    def __post_init__(self) -> None:
        for key in ("read", "write"):
            value = getattr(self, key)
            if value is not None:
                check_site(value, f"sites.{key}")
        layers = self.layers
        if layers is None:
            return
        if not isinstance(layers, list | tuple) or not layers or not all(isinstance(i, int) for i in layers):
            raise UserError(f"sites.layers must be a list of numbers of blocks, such as [3, 11], got {layers!r}")
        signs = [i < 0 for i in layers]
        if list(layers) != sorted(set(layers)) and (all(signs) or not any(signs)):
            raise UserError(f"sites.layers must ascend without repeats, got {list(layers)}")
        object.__setattr__(self, "layers", list(layers))

    def of(self, topology: str) -> Sites:
        """The same with the sites of a topology where none are named.

        Raises:
            UserError: sites that do not go together, or not with the topology.
        """
        read = self.read or (self.write if topology == "sae" and self.write else None)
        read = read or ("mlp_out" if topology == "sae" else "mlp_in")
        write = self.write or ("mlp_out" if read == "mlp_in" and topology != "sae" else read)
        found = Sites(read, write, self.layers)
        found.check(topology)
        return found

    def check(self, topology: str) -> None:
        """Whether a transcoder of a topology can stand here.

        Raises:
            UserError: it cannot; the message says why.
        """
        read, write = str(self.read), str(self.write)
        places = f"sites.read={read}, sites.write={write}"
        if topology == "sae" and read != write:
            raise UserError(f"{places}: topology 'sae' rebuilds what it reads: name one site, or take 'per_layer'")
        if topology != "sae" and read == write:
            raise UserError(f"{places}: what rebuilds its own input is topology 'sae', not '{topology}'")
        if SITES.index(read) > SITES.index(write):
            raise UserError(f"{places}: {write} is there before {read} in a forward: it cannot be rebuilt from it")
        if read in FINAL_SITES or write in FINAL_SITES:
            if read != write:
                raise UserError(f"{places}: a site after the last block stands alone: give it as both")
            if self.layers is not None and self.layers != [-1]:
                raise UserError(f"{places}: the model has this site once: leave sites.layers out")
        before, after = ("resid_pre", "attn_in"), ("attn_z", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post")
        if read in before and write in after:
            raise UserError(
                f"{places}: attention stands between them and mixes tokens, a transcoder looks at one token at a time: "
                "read attn_out or mlp_in instead, or rebuild what you read (topology 'sae')"
            )
        if topology == "cross_layer" and write in STREAM_SITES:
            raise UserError(
                f"{places}: the residual stream holds what earlier layers wrote already, so that 'cross_layer' would "
                "count it twice: take topology 'sae' or 'per_layer'"
            )

    def resolve(self, n_layers: int, name: str) -> tuple[int, ...]:
        """The blocks' numbers in a backbone; one 0 for a site that it has once.

        Args:
            n_layers: of the backbone.
            name: what it is called.

        Raises:
            UserError: a block that the backbone has not, or the same one twice.
        """
        if self.read in FINAL_SITES:
            return (0,)
        if self.layers is None:
            return tuple(range(n_layers))
        wrong = [layer for layer in self.layers if not -n_layers <= layer < n_layers]
        if wrong:
            raise UserError(
                f"sites.layers={self.layers}: {wrong} do not exist: '{name}' has blocks 0 to {n_layers - 1}"
            )
        found = [layer % n_layers for layer in self.layers]
        if found != sorted(set(found)):
            raise UserError(f"sites.layers={self.layers}: these are blocks {found}, which must ascend without repeats")
        return tuple(found)

    @property
    def is_mlp(self) -> bool:
        """Whether it stands in the place of the MLPs: the sites of cross-layer transcoders."""
        return self.write == "mlp_out"

    @property
    def once(self) -> bool:
        """Whether the model has this site once, after the last block."""
        return self.read in FINAL_SITES

    def config(self) -> dict[str, Any]:
        """Plain values."""
        return {"read": self.read, "write": self.write, "layers": None if self.layers is None else list(self.layers)}

    @classmethod
    def from_config(cls, value: Sites | dict[str, Any] | None) -> Sites:
        """From `config()`, or as it is.

        Raises:
            UserError: something else.
        """
        if value is None:
            return cls()
        if isinstance(value, Sites):
            return value
        if not isinstance(value, dict) or set(value) - {"read", "write", "layers"}:
            raise UserError(f"sites must have the keys read, write and layers, got {value!r}")
        return cls(**value)
