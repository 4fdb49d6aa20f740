"""A run of two steps on the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

CONFIG: dict[str, Any] = {
    "name": "small",
    "model": {
        "backbone": {"pretrained": "demo"},
        "transcoder": {"n_features": 32, "activation": {"class_path": "BatchTopK", "init_args": {"k": 4}}},
        "schedule": {"decay": "none"},
        "tokens": {"statistics": 64},
    },
    "data": {"class_path": "Demo", "init_args": {"root": "data", "n_train": 16, "n_test": 8, "batch_size": 8}},
    "trainer": {
        "max_steps": 2,
        "accelerator": "cpu",
        "devices": 1,
        "val_check_interval": 2,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    },
    "checkpoints": {"last_every_n_steps": 1},
    "zero_shot": {"windows": ["0-"]},
    "figures": {"every": 0},
}


def write(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG | changes))
    return path
