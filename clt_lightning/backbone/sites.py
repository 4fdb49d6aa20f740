"""Sites: the named tensors of a Vision Transformer that can be read and overridden."""

from __future__ import annotations

from clt_lightning.core.errors import UserError

#: Tensors of a block, in the order in which a forward makes them; `(images, positions, d_model)` each
BLOCK_SITES = ("resid_pre", "attn_in", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post")
#: Tensors that the model has once, after the last block: the tokens after the last norm, and the pooled embedding
FINAL_SITES = ("final_tokens", "final")
SITES = (*BLOCK_SITES, *FINAL_SITES)
#: The residual stream: what is put there takes the place of all that was added before
STREAM_SITES = ("resid_pre", "resid_mid", "resid_post")


def check_site(site: str) -> str:
    """The name of a site as it is.

    Raises:
        UserError: there is no such site.
    """
    if site not in SITES:
        raise UserError(f"unknown site '{site}': choose one of {', '.join(SITES)}")
    return site


def order(site: str, layer: int) -> tuple[int, int]:
    """Sorts sites by the time at which a forward reaches them."""
    return (layer if site in BLOCK_SITES else 1 << 30, SITES.index(site))
