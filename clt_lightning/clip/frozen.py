"""The frozen backbone: an open_clip model with windows into its MLPs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import open_clip
import PIL.Image
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor, nn

from clt_lightning.clip.activations import Activations
from clt_lightning.clip.build import build_model
from clt_lightning.clip.overrides import BranchFn, BranchOverrides
from clt_lightning.clip.prompts import Template, check_prompts, fill
from clt_lightning.clip.source import find_source
from clt_lightning.clip.supported import check_config, check_tower
from clt_lightning.clip.tokenizer import Tokenizer, doubts, make_tokenizer
from clt_lightning.core.errors import UserError, setting
from clt_lightning.core.progress import Progress
from clt_lightning.core.say import doubt

PRECISIONS = ("fp32", "bf16")
Images = Tensor | PIL.Image.Image | Sequence[Tensor | PIL.Image.Image]
"""Preprocessed `(images, 3, size, size)`, one `(3, size, size)`, a PIL image, or a list of single ones."""


class FrozenCLIP(nn.Module):
    """An open_clip model that never changes: no gradients, eval mode for ever, its own precision.

    Its weights are kept out of everything that a parent module does with parameters: they appear in no `parameters()`,
    no `state_dict()`, no DDP bucket, and `.half()`, `.double()` or a precision plugin do not touch them. Device moves
    do.

    Args:
        name: architecture as open_clip names it (`open_clip.list_models()`), e.g. `ViT-B-32-quickgelu`; or
            `hf-hub:ORG/NAME` or `local-dir:FOLDER`, which bring weights along (`pretrained` is then left out).
        pretrained: where the weights come from: a tag of open_clip's (`openai`); the path of a file (safetensors, a
            state dict of `torch.save`, or OpenAI's own TorchScript archive); a folder with `open_clip_config.json` and
            weights, such as a snapshot of the Hugging Face Hub; `hf-hub:ORG/NAME[@REVISION]` or `local-dir:FOLDER`;
            `demo` for the small CLIP that comes with the package; null for random weights. A folder, a repository and
            `demo` bring their architecture along, and `name` is not used; a file does if `name` is none of open_clip's.
        precision: `fp32`, or `bf16`: weights in bfloat16, LayerNorms and returned embeddings in fp32.
        seed: seed of the random weights when `pretrained` is null.

    Attributes:
        n_layers: residual blocks of the image tower.
        d_model: width of the image tower.
        n_positions: tokens of an image: [CLS] and the patches.
        grid: patches as (rows, columns).
        image_size: side of the square input in pixels.
        embed_dim: size of the embeddings that images and texts share.
        quick_gelu: whether the MLPs compute `x * sigmoid(1.702 x)` in the place of GELU.
        preprocess: evaluation transform, PIL image -> `(3, image_size, image_size)` float32 tensor.
        mean: per channel, what `preprocess` subtracts; `std`: what it divides by.
        blocks: the image tower's residual blocks; `batch_first`: whether they take `(images, positions, d_model)`, not
            `(positions, images, d_model)`.
        logit_scale: the factor on cosine similarities in `logits`, 100 as in CLIP's zero-shot protocol.

    Raises:
        UserError: unknown name or tag, weights trained with the other GELU, weights that cannot be had, a file that
            holds none (the message says what it is), or an architecture without residual blocks of `ln_2`, `mlp`,
            `ls_2` (ResNets, timm towers).
    """

    def __init__(
        self,
        name: str = "ViT-B-32-quickgelu",
        pretrained: str | None = "openai",
        precision: str = "fp32",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise UserError(f"{setting('precision')}: '{precision}' is not known for the CLIP: choose one of {known}")
        source = find_source(name, pretrained)
        check_config(source.name, source.model_cfg)
        model = build_model(source, precision, seed).requires_grad_(False).eval()
        visual = check_tower(source.name, model)

        # not through nn.Module's attribute setting: a registered child would appear in parameters() and state_dict()
        object.__setattr__(self, "_model", model)
        self.name = source.name
        self.pretrained = source.pretrained
        self.precision = precision
        self.seed = seed
        self.quick_gelu = source.quick_gelu
        self.blocks: list[nn.Module] = list(visual.transformer.resblocks)
        self.n_layers = len(self.blocks)
        self.d_model = int(visual.transformer.width)
        self.grid: tuple[int, int] = (int(visual.grid_size[0]), int(visual.grid_size[1]))
        self.n_positions = 1 + self.grid[0] * self.grid[1]
        self.image_size = int(visual.image_size[0])
        self.embed_dim = int(source.model_cfg["embed_dim"])
        self.logit_scale = 100.0
        cfg = PreprocessCfg(**open_clip.get_model_preprocess_cfg(model))
        self.mean = tuple(cfg.mean)
        self.std = tuple(cfg.std)
        self.preprocess = image_transform_v2(cfg, is_train=False)
        self.batch_first = bool(getattr(visual.transformer, "batch_first", False))
        self._depth = 0  # forwards under way: more than one when an override's function runs the model itself
        self._overrides = BranchOverrides(self.blocks, self.batch_first)
        self._source = source
        self._tokenizer: Tokenizer | None = None
        self._sha256: str | None = None

    # -- frozen for ever ---------------------------------------------------------------------------------------------

    @property
    def model(self) -> Any:
        """The open_clip model itself (`open_clip.CLIP`, `CustomTextCLIP` or `CoCa`)."""
        return self.__dict__["_model"]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.logit_scale.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the residual stream, so of captured activations."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def train(self, mode: bool = True) -> FrozenCLIP:
        """Stay in eval mode, whatever is asked for."""
        return super().train(False)

    def requires_grad_(self, requires_grad: bool = True) -> FrozenCLIP:
        """Stay frozen, whatever is asked for."""
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenCLIP:
        # `.to()`, `.cuda()`, `.double()` of a parent all end here. Ask where `fn` would put a tensor, and follow it in
        # device only: the precision is the backbone's own
        super()._apply(fn, recurse)
        target = fn(torch.empty(0, device=self.device)).device
        if target != self.device:
            self.model.to(target)
        return self

    # -- images ------------------------------------------------------------------------------------------------------

    def forward(self, images: Images) -> Tensor:
        """The same as `encode_image(images)`."""
        return self.encode_image(images)

    def encode_image(self, images: Images, normalize: bool = True, grad: bool = False) -> Tensor:
        """Embed images: the numbers of open_clip's own `encode_image`.

        Args:
            images: `(images, 3, image_size, image_size)`, preprocessed; or a PIL image, or a list of either.
            normalize: scale every embedding to length 1.
            grad: let gradients flow to what an override puts in (the weights stay frozen either way).

        Returns:
            `(images, embed_dim)` in fp32.

        Raises:
            UserError: if the images have another shape.
        """
        images = self._check_images(images)
        if len(images) == 0:  # an evaluation with fewer samples than processes ends in such a batch
            return torch.zeros(0, self.embed_dim, device=self.device)
        with self.running(grad):
            embeddings = self.model.encode_image(images, normalize=False).float()
            return F.normalize(embeddings, dim=-1) if normalize else embeddings

    def capture(
        self,
        images: Images,
        layers: Iterable[int] | None = None,
        embeddings: bool = False,
        stop: bool = True,
        positions: Tensor | None = None,
    ) -> Activations:
        """Run images through the tower and keep what its MLPs read and write.

        `x` is each `ln_2`'s output, `y` each `ls_2`'s output (the MLP's output with LayerScale). Under an active
        `mlp_override`, x is read from the modified stream and y is what was added in fact. No gradients.

        Args:
            images: `(images, 3, image_size, image_size)`, preprocessed; or a PIL image, or a list of either.
            layers: layers to keep, in the order wanted; None for all.
            embeddings: also return the images' embeddings, from the same forward.
            stop: end the forward after the last layer needed, unless embeddings are asked for.
            positions: int64 `(images, n)` token positions to keep of every image (see
                `activations.random_positions`); None for all. Only the kept tokens are written.

        Returns:
            Activations in the model's dtype; tokens are image-major.

        Raises:
            UserError: wrong image shape, unknown layer, or positions out of range.
        """
        images = self._check_images(images)
        wanted = self.check_layers(layers)
        n_images = len(images)
        index, kept = self._token_index(positions, n_images)
        x = torch.empty(len(wanted), n_images * kept, self.d_model, dtype=self.dtype, device=self.device)
        y = torch.empty_like(x)
        last = max(wanted) if stop and not embeddings else None
        found = None
        handles = []
        if n_images == 0:
            empty = torch.zeros(0, self.embed_dim, device=self.device) if embeddings else None
            return Activations(x, y, 0, kept, wanted, embeddings=empty, positions=positions)
        try:
            for i, layer in enumerate(wanted):
                block: Any = self.blocks[layer]
                handles.append(block.ln_2.register_forward_hook(self._writer(x[i], index)))
                handles.append(block.ls_2.register_forward_hook(self._writer(y[i], index, stop=layer == last)))
            with self.running(grad=False):
                features = self.model.encode_image(images, normalize=False)
                if embeddings:
                    found = F.normalize(features.float(), dim=-1)
        except _ForwardDone:
            pass
        finally:
            for handle in handles:
                handle.remove()
        kept_positions = None if positions is None else positions.to(self.device)
        return Activations(x, y, n_images, kept, wanted, embeddings=found, positions=kept_positions)

    @contextmanager
    def mlp_override(self, fn: BranchFn, layers: Iterable[int] | None = None) -> Iterator[None]:
        """While active, `fn` makes what the MLP branch of every listed block adds to the residual stream.

        Args:
            fn: `fn(layer, x, compute_y) -> y`. `x` is `ln_2`'s output on the running (already modified) stream,
                `(images, positions, d_model)` in the model's dtype; `compute_y()` is the branch's own output
                `ls_2(mlp(x))`, paid for only if called. The result is cast to the model's dtype. The caller's autocast
                setting holds inside `fn`, not around it.
            layers: blocks to override; None for all. Of nested overrides the innermost wins, layer by layer.

        Raises:
            UserError: for unknown layers, or if `fn` returns another shape than `x`'s.
        """
        with self._overrides.active(fn, self.check_layers(layers)):
            yield

    @contextmanager
    def watch(self, fn: Callable[[int, Tensor], None], layers: Iterable[int] | None = None) -> Iterator[None]:
        """While active, `fn(layer, x)` sees what each listed MLP reads; nothing is changed.

        Args:
            fn: called with the layer and `ln_2`'s output on the running stream, `(images, positions, d_model)`. Unlike
                `mlp_override` it takes no branch over, so it sees x also where another override is at work.
            layers: blocks to watch; None for all.

        Raises:
            UserError: for unknown layers.
        """

        def hook_of(layer: int) -> Callable[..., None]:
            def see(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
                fn(layer, output if self.batch_first else output.transpose(0, 1))

            return see

        wanted = self.check_layers(layers)
        handles: list[Any] = []
        for layer in wanted:
            block: Any = self.blocks[layer]
            handles.append(block.ln_2.register_forward_hook(hook_of(layer)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def check_layers(self, layers: Iterable[int] | None) -> tuple[int, ...]:
        """Layer numbers as a tuple; None means all. Raises a UserError for unknown, repeated or no layers."""
        if layers is None:
            return tuple(range(self.n_layers))
        wanted = tuple(int(layer) for layer in layers)
        if not wanted:
            raise UserError("the list of layers is empty")
        if len(set(wanted)) != len(wanted):
            raise UserError(f"layers {list(wanted)} name a layer twice")
        unknown = [layer for layer in wanted if not 0 <= layer < self.n_layers]
        if unknown:
            raise UserError(f"layers {unknown} do not exist: '{self.name}' has layers 0 to {self.n_layers - 1}")
        return wanted

    # -- texts -------------------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Tokenizer:
        """Texts -> int64 tokens `(texts, context_length)`, as this model's text tower reads them.

        Raises:
            UserError: it needs the package transformers, which is not installed.
        """
        if self._tokenizer is None:
            self._tokenizer = make_tokenizer(self._source)
        return self._tokenizer

    def encode_text(self, texts: Sequence[str] | Tensor) -> Tensor:
        """Embed texts.

        Args:
            texts: sentences, or their tokens `(texts, context_length)`.

        Returns:
            Unit-norm `(texts, embed_dim)` in fp32.

        Raises:
            UserError: tokens that the text tower does not have.
        """
        tokens = texts if isinstance(texts, Tensor) else self.tokenizer(list(texts))
        text_tower = getattr(self.model, "text", self.model)
        size = getattr(text_tower, "vocab_size", None)
        if size is not None and tokens.numel() and int(tokens.max()) >= size:
            raise UserError(
                f"the text tower of '{self.name}' has {size:,} tokens, its tokenizer gives number "
                f"{int(tokens.max()):,}: its config names another tokenizer than it was trained with"
            )
        with self.running(grad=False):
            embeddings = self.model.encode_text(tokens.to(self.device), normalize=False)
            return F.normalize(embeddings.float(), dim=-1)

    def zero_shot_head(
        self,
        classnames: Sequence[str],
        templates: Sequence[Template],
        batch_size: int = 512,
        progress: bool = True,
    ) -> Tensor:
        """The zero-shot classifier: for every class, the mean of its prompts' unit embeddings, scaled to length 1.

        Warns where such a classifier says little (`zero_shot_doubts`).

        Args:
            classnames: one name a class.
            templates: sentences with `{c}`, `{}` or `{class}` where the name goes, or functions of the name.
            batch_size: about how many prompts to encode at once.
            progress: say how far it is, where it takes long.

        Returns:
            `(embed_dim, classes)` in fp32, unit columns.

        Raises:
            UserError: no class names or templates, or a template without a place for the name.
        """
        for text in self.zero_shot_doubts(classnames, templates):
            doubt(text, stacklevel=3)
        return self.embed_names(classnames, templates, batch_size, progress).T.contiguous()

    def zero_shot_doubts(self, classnames: Sequence[str], templates: Sequence[Template]) -> list[str]:
        """Why zero-shot predictions with these names say little, in sentences; empty where nothing speaks against them.

        Random weights, class names that the tokenizer reads as one and the same text, or that it does not know.

        Args:
            classnames: as `zero_shot_head` takes them.
            templates: as well.
        """
        check_prompts(classnames, templates)
        found = doubts(classnames, templates, self.tokenizer)
        if self.has_random_weights:
            found.insert(0, "this CLIP has random weights (pretrained is null): its zero-shot predictions are guesses")
        return found

    @property
    def has_random_weights(self) -> bool:
        """Whether no weights were loaded."""
        return self.pretrained is None

    def embed_names(
        self,
        names: Sequence[str],
        templates: Sequence[Template],
        batch_size: int = 512,
        progress: bool = True,
        what: str = "zero-shot head",
        unit: str = "classes",
    ) -> Tensor:
        """The mean of each name's prompts' unit embeddings, scaled to length 1.

        Args:
            names: what goes into the templates.
            templates: as `zero_shot_head` takes them.
            batch_size: about how many prompts to encode at once.
            progress: say how far it is, where it takes long.
            what: what the names are for, in the lines that say how far it is.
            unit: what they are, in the plural.

        Returns:
            Unit-norm `(names, embed_dim)` in fp32.

        Raises:
            UserError: no names or templates, or a template without a place for the name.
        """
        check_prompts(names, templates)
        step = max(1, batch_size // len(templates))
        rows = []
        with Progress(what, len(names), unit, show=progress) as bar:
            for start in range(0, len(names), step):
                batch = names[start : start + step]
                prompts = [fill(template, name) for name in batch for template in templates]
                of_each = self.encode_text(prompts).unflatten(0, (len(batch), len(templates))).mean(dim=1)
                rows.append(F.normalize(of_each, dim=-1))
                bar.update(len(batch))
        return torch.cat(rows)

    def logits(self, embeddings: Tensor, head: Tensor) -> Tensor:
        """Class logits `(images, classes)`: cosine similarities times `logit_scale`, in fp32."""
        return self.logit_scale * (embeddings.float() @ head.float().to(embeddings.device))

    # -- the record --------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """What a run records of its backbone: plain values, ready for JSON."""
        if self._sha256 is None:
            self._sha256 = _hash_weights(self.model)
        return {
            "name": self.name,
            "pretrained": self.pretrained,
            "seed": self.seed if self.pretrained is None else None,
            "gelu": "quick_gelu" if self.quick_gelu else "gelu",
            "precision": self.precision,
            "weights_sha256": self._sha256,
            "embed_dim": self.embed_dim,
            "image_size": self.image_size,
            "grid": list(self.grid),
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "open_clip": open_clip.__version__,
        }

    def extra_repr(self) -> str:
        return (
            f"{self.name!r}, pretrained={self.pretrained!r}, precision={self.precision!r}, n_layers={self.n_layers}, "
            f"d_model={self.d_model}, n_positions={self.n_positions}"
        )

    @contextmanager
    def running(self, grad: bool) -> Iterator[None]:
        """The backbone's own precision, whatever autocast surrounds it; gradients only where asked for and allowed."""
        kind = self.device.type
        outer = self._overrides.caller_autocast
        self._depth += 1
        self._overrides.caller_autocast = (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        try:
            with torch.set_grad_enabled(grad and torch.is_grad_enabled()), torch.autocast(kind, enabled=False):
                yield
        finally:
            self._depth -= 1
            self._overrides.caller_autocast = outer

    # -- inside ------------------------------------------------------------------------------------------------------

    def _check_images(self, images: Images) -> Tensor:
        if not isinstance(images, Tensor):
            several = list(images) if isinstance(images, Sequence) else [images]
            if not several:
                raise UserError("no image was given")
            images = torch.stack([i if isinstance(i, Tensor) else self.preprocess(i.convert("RGB")) for i in several])
        elif images.ndim == 3:
            images = images[None]
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, self.image_size, self.image_size):
            raise UserError(
                f"'{self.name}' reads images of shape (images, 3, {self.image_size}, {self.image_size}), got "
                f"{tuple(images.shape)}: pass them through its `preprocess`"
            )
        return images.to(device=self.device, dtype=self.dtype)

    def _token_index(self, positions: Tensor | None, n_images: int) -> tuple[Tensor | None, int]:
        if positions is None:
            return None, self.n_positions
        if positions.ndim != 2 or len(positions) != n_images:
            raise UserError(f"positions must be (images, n) = ({n_images}, n), got {tuple(positions.shape)}")
        if positions.numel() and not 0 <= int(positions.min()) <= int(positions.max()) < self.n_positions:
            raise UserError(f"positions must lie in 0..{self.n_positions - 1}, got up to {int(positions.max())}")
        offsets = torch.arange(n_images, device=positions.device).unsqueeze(1) * self.n_positions
        return (offsets + positions).flatten().to(self.device), positions.shape[1]

    def _writer(self, buffer: Tensor, index: Tensor | None, stop: bool = False) -> Callable[..., None]:
        depth = self._depth + 1

        def write(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if self._depth != depth:
                return  # a forward inside the captured one
            tokens = output if self.batch_first else output.transpose(0, 1)
            tokens = tokens.reshape(-1, self.d_model)
            if index is None:
                buffer.copy_(tokens)
            else:
                torch.index_select(tokens, 0, index, out=buffer)
            if stop:
                raise _ForwardDone

        return write


class _ForwardDone(Exception):  # noqa: N818  (a signal, not an error)
    """Raised by the last hook of a capture: nothing that comes after in the forward is needed."""


def _hash_weights(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
