"""Two real processes under Lightning's DDP: every sample validated once, equal steps, exact mid-epoch resume."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..world import write_root

SCRIPT = r"""
import json, os, sys, warnings
from pathlib import Path
import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from clt_lightning.data.sets.base import WebImages

warnings.filterwarnings("ignore")
torch.set_num_threads(1)


def to_tensor(image):
    import numpy as np
    return torch.from_numpy(np.asarray(image.resize((8, 8)), dtype=np.float32) / 255).permute(2, 0, 1)


class Model(pl.LightningModule):
    def __init__(self, out):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.register_buffer("moving", torch.zeros(1))  # buffers make DDP talk in evaluation as well
        self.out = out
        self.seen = []

    def note(self, stage, batch):
        self.seen.append([stage, self.global_step, self.current_epoch, batch["key"]])

    def training_step(self, batch, _):
        self.note("train", batch)
        return self.layer(batch["image"].mean((1, 2, 3))[:, None]).mean()

    def validation_step(self, batch, _):
        if not self.trainer.sanity_checking:
            self.note("val", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def on_fit_end(self):
        Path(f"{self.out}.{self.global_rank}").write_text(json.dumps(self.seen))


root, folder, steps = sys.argv[1:4]
for limit in (0, 3, "overfit"):
    # whole; from the middle and from the end of the first epoch
    for start in (None, 3) if limit == "overfit" else (None, 2, limit or 5):
        whole, out = f"{folder}/{limit}-None", f"{folder}/{limit}-{start}"
        dm = WebImages(root=root, batch_size=4, num_workers=2, shuffle=7, augment="flip")
        dm.transform = to_tensor
        saved = ModelCheckpoint(dirpath=out + "-ckpt", save_top_k=-1, every_n_train_steps=1, filename="{step}")
        trainer = pl.Trainer(
            accelerator="cpu", devices=2, strategy="ddp", max_steps=int(steps), logger=False,
            enable_model_summary=False,
            enable_progress_bar=False, default_root_dir=out, num_sanity_val_steps=1,
            **({"overfit_batches": 2, "use_distributed_sampler": False} if limit == "overfit" else
               {"limit_train_batches": limit or 1.0}),
            callbacks=[saved],
        )
        checkpoint = f"{whole}-ckpt/step={start}.ckpt" if start else None
        trainer.fit(Model(out), dm, ckpt_path=checkpoint, weights_only=False)
"""

STEPS = 8


def launch(folder: Path) -> None:
    """Writes what each rank saw to `<limit>-<start>.<rank>`: one launch for all runs, since starting costs most."""
    root = write_root(folder / "data", train=[30, 11], test=[5, 3, 1])
    (folder / "script.py").write_text(SCRIPT)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "SLURM", "LOCAL_RANK", "NODE_RANK"))}
    env |= {"MASTER_PORT": str(port), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(folder / "script.py"), str(root), str(folder), str(STEPS)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]


def seen(folder: Path, limit: int | str, start: int | None, stage: str) -> list[list[Any]]:
    """By rank: `[step, epoch, keys]` of every batch."""
    ranks = [json.loads((folder / f"{limit}-{start}.{rank}").read_text()) for rank in range(2)]
    return [[entry[1:] for entry in rank if entry[0] == stage] for rank in ranks]


def keys(ranks: list[list[Any]], epoch: int) -> list[str]:
    return [key for rank in ranks for _, e, batch in rank if e == epoch for key in batch]


def check_whole(folder: Path, limit: int) -> None:
    """Distinct training samples in every epoch, and every test sample validated once."""
    length = limit or 5
    trained, validated = (seen(folder, limit, None, stage) for stage in ("train", "val"))
    for epoch in range(STEPS // length):
        assert len(keys(trained, epoch)) == len(set(keys(trained, epoch))) == length * 8
        shards = ((0, range(5)), (1, range(5, 8)), (2, range(8, 9)))
        assert sorted(keys(validated, epoch)) == [f"{s}/s{i:07d}" for s, part in shards for i in part]
    assert len(validated[0]) == len(validated[1]) > 0


def check_resumed(folder: Path, limit: int, start: int) -> None:
    """The resumed run goes on with the very next batch, on both ranks."""
    whole, resumed = seen(folder, limit, None, "train"), seen(folder, limit, start, "train")
    assert [len(rank) for rank in resumed] == [STEPS - start] * 2
    assert resumed == [rank[start:] for rank in whole]


def check_overfitting(folder: Path) -> None:
    """Each rank has two batches of its own, the same ones in every epoch and after a resume."""
    whole, resumed = seen(folder, "overfit", None, "train"), seen(folder, "overfit", 3, "train")
    batches = [[keys for _, _, keys in rank] for rank in whole]
    for rank in batches:
        assert rank == rank[:2] * (STEPS // 2)
    assert len({key for rank in batches for keys in rank for key in keys}) == 16
    assert [[keys for _, _, keys in rank] for rank in resumed] == [rank[3:] for rank in batches]


def test_two_ranks_train_validate_and_resume(tmp_path: Path) -> None:
    launch(tmp_path)
    for limit in (0, 3):
        check_whole(tmp_path, limit)
        check_resumed(tmp_path, limit, 2)
        check_resumed(tmp_path, limit, limit or 5)
    check_overfitting(tmp_path)
