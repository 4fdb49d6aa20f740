"""What people see of the commands: on terminals of 80 and 140 columns, and in a pipe."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from clt_lightning.cli.main import main
from clt_lightning.core.progress import Progress
from tests.terminal import Screen, on_terminal

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.yaml"

#: What Lightning and its neighbours say by themselves, of no use to the user
NOISE = (
    "GPU available",
    "TPU available",
    "Seed set to",
    "Restoring states",
    "Loaded model weights",
    "`Trainer.fit` stopped",
    "Tip:",
    "Trainable params",
    "Modules in train mode",
    "Trainer already configured",
    "The number of training batches",
    "Test metric",
    "DataLoader 0",
    "You have overridden",
    "site-packages",
    "it/s",
)


def words(demo_tars: Path, runs: Path, *more: str) -> list[str]:
    data = {"root": demo_tars, "n_train": 256, "n_test": 75, "world": 5, "batch_size": 16, "num_workers": 0}
    return [
        f"--config={CONFIG}",
        *(f"--data.init_args.{key}={value}" for key, value in data.items()),
        "--model.transcoder.n_features=96",
        "--model.tokens.statistics=1000",
        "--model.schedule.warmup_steps=0",
        "--trainer.max_steps=8",
        "--trainer.val_check_interval=4",
        "--trainer.log_every_n_steps=2",
        "--figures.every=0",
        f"--runs_dir={runs}",
        *more,
    ]


CHEAP = [
    "--evaluate.population.images=32",
    "--evaluate.cascade.firsts=[0]",
    "--evaluate.cascade.singles=false",
    "--evaluate.bootstrap=20",
    "--evaluate.faithfulness.enabled=false",
    "--evaluate.effects.enabled=false",
]

BOTH_WIDTHS = """
import json, logging, os, sys, warnings
from clt_lightning.cli.main import main
from clt_lightning.core.progress import Progress
Progress._redraw = 0.0
fit, test, run = json.loads(sys.argv[1])
run += "/quickstart/version_0"

def command(*words):
    sys.argv[1:] = words
    main()

os.environ["COLUMNS"] = "80"
command("fit", *fit)
command("test", "--run", run, *test)
os.environ["COLUMNS"] = "140"
print("=== 140 columns", flush=True)
command("validate", "--run", run)
command("predict", "--run", run)
command("fit", *fit, "--trainer.max_steps=12", "--ckpt_path=last")
print("=== messages", flush=True)
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
logging.getLogger("lightning.fabric.utilities.seed").info("[rank: 1] Seed set to 3")
rank_zero_info("GPU available: True (cuda), used: True")
rank_zero_info("GPU memory is short")
rank_zero_info("`Trainer.fit` stopped: `max_steps=3` reached.")
rank_zero_info("`Trainer.fit` stopped: No training batches.")
rank_zero_warn("Checkpoint directory /r/version_3/checkpoints exists and is not empty.")
rank_zero_warn("Checkpoint directory /r/mine exists and is not empty.")
warnings.warn("the loader is slow")
"""


@pytest.fixture(scope="module")
def shown(demo_tars: Path, tmp_path_factory: pytest.TempPathFactory) -> Screen:
    """A terminal of 140 columns, on which the first commands are told that it has 80."""
    runs = tmp_path_factory.mktemp("runs")
    given = json.dumps([words(demo_tars, runs), CHEAP, str(runs)])
    code, screen, raw = on_terminal([sys.executable, "-c", BOTH_WIDTHS, given], 140)
    assert code == 0, raw[-3000:]
    return screen


BAR = re.compile(r"\d of [\d,]+( [a-z]+)? \(\d+%\)")


def test_no_line_mixes_the_bar_with_a_message(shown: Screen) -> None:
    bars = [line for line in shown.seen if BAR.search(line)]
    for work in ("step 3 of 8", "validation at step 8: 3", "training images: 1", "test: 3", "validation: 2",
                 "prediction: 2", "step 11 of 12"):  # fmt: skip
        assert any(line.startswith(work) for line in bars), work
    whole = re.compile(
        r"([a-z][^:]*: |step )[\d,]+ of [\d,]+( [a-z]+)? \(\d+%\)"
        r"(, (loss [\d.e+-]+|L0 [\d.]+|[\d.]+( [kM])? tokens/s|[\d.]+( [kM])? a second|about [\d.hminds ]+ left))*"
        r"( \[#*\.*\])?"
    )
    assert [line for line in bars if not whole.fullmatch(line)] == []
    # what stays is what was said, and nothing of a line that was rewritten
    assert [line for line in shown.lines if BAR.search(line)] == []


def test_no_table_is_wider_than_the_terminal(shown: Screen) -> None:
    middle = shown.lines.index("=== 140 columns")
    narrow = [line for line in shown.lines[:middle] if "/" not in line]  # paths are as long as they are
    assert [line for line in narrow if len(line) > 80] == []
    assert sum("cls tokens" in line for line in narrow) == 3  # two validations and a test
    assert any(line.count(" tokens -") == 3 for line in narrow)  # one table, set tightly
    wide = [line for line in shown.lines[middle:] if " tokens -" in line]
    assert {len(line) for line in wide} == {97}
    live = [line for line in shown.seen if re.match(r"step \d", line)]
    assert max(map(len, live[: len(live) // 2])) < 80
    assert any(len(line) > 80 for line in live)


def test_a_newcomer_reads_what_happens(shown: Screen) -> None:
    text = "\n".join(shown.lines)
    assert not [noise for noise in NOISE if noise in text.split("=== messages")[0]]
    assert re.search(r"^backbone: +demo-ViT-4-96, 4 blocks of width 96, 58\d k parameters, frozen$", text, re.MULTILINE)
    assert re.search(r"^training: +8 steps of 16 images, on the CPU \(\d threads?\) in 32-true$", text, re.MULTILINE)
    assert re.search(r"^test: +weights of step 8, on the CPU", text, re.MULTILINE)
    assert "FVU: share of the variance that is not explained, 0 is perfect" in text
    assert re.search(r"^training: +12 steps of 16 images from step 8 on, on the CPU", text, re.MULTILINE)


def test_a_pipe_gets_lines_and_no_bar(
    demo_tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Progress, "shortest", 0.0)
    monkeypatch.setattr(Progress, "share", 0.25)
    main(["fit", *words(demo_tars, tmp_path)])
    out, err = capsys.readouterr()
    assert "\r" not in out + err
    assert "\033" not in out + err
    assert not [noise for noise in NOISE if noise in out + err]
    lines = [line for line in out.splitlines() if line.startswith("step ")]
    assert [line.split(",")[0] for line in lines] == [f"step {n} of 8 ({n / 8:.0%})" for n in (2, 4, 6, 8)]
    assert all(re.search(r", loss [\d.]+, L0 [\d.]+, [\d.]+( k)? tokens/s", line) for line in lines[1:])
    assert re.search(r"about \d+(\.\d)? s left$", lines[1])
    assert "validation at step 4: 2 of 5 batches" in out
    assert max(len(line) for line in out.splitlines() if "/" not in line) <= 80
    assert len((out + err).splitlines()) < 80, out + err


def test_enough_is_said_where_the_bar_is_off(
    demo_tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.max_steps=2"]
    main(["fit", *words(demo_tars, tmp_path, *quiet)])
    out = capsys.readouterr().out
    assert "backbone:" not in out
    assert not re.search(r"^(step|validation at)", out, re.MULTILINE)
    assert "validation, step 2" in out


def test_the_users_own_bar_is_left_to_him(demo_tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--trainer.callbacks=TQDMProgressBar", "--trainer.callbacks+=ModelSummary", "--trainer.max_steps=2"]
    main(["fit", *words(demo_tars, tmp_path, *own)])
    out = capsys.readouterr().out
    assert "Epoch 0" in out
    assert "backbone:" not in out


def test_only_what_nobody_can_act_upon_is_silenced(shown: Screen) -> None:
    assert shown.lines[shown.lines.index("=== messages") + 1 :] == [
        "GPU memory is short",
        "`Trainer.fit` stopped: No training batches.",
        "warning: Checkpoint directory /r/mine exists and is not empty.",
        "warning: the loader is slow",
        "",
    ]
