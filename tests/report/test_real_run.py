"""A report of a real model on real data: what the pages draw is what the transcoder computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from clt_lightning.analysis.features import FeatureCollector, FeatureOptions
from clt_lightning.analysis.retrieval import RetrievalCollector
from clt_lightning.analysis.run import Run, open_run
from clt_lightning.analysis.steering import Edit, steered
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.cli.main import main
from clt_lightning.core.errors import UserError
from clt_lightning.report.packing import RESOLUTION, unpack_column, unpack_maps
from clt_lightning.report.studies import image_page_data
from clt_lightning.transcoder import CrossLayerTranscoder, StatisticsAccumulator, TopK
from tests.report.conftest import read_data

FEATURES = 96


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, demo_tars: Path) -> Run:
    """A run with random decoders on the demo's CLIP, its features and codes collected on 75 renders."""
    folder = tmp_path_factory.mktemp("runs") / "version_0"
    folder.mkdir()
    clip = FrozenCLIP(pretrained="demo")
    clt = CrossLayerTranscoder(clip.n_layers, clip.d_model, FEATURES, TopK(8), seed=1)
    data = {"root": str(demo_tars), "n_train": 256, "n_test": 75, "world": 5, "batch_size": 32, "num_workers": 0}
    config = {
        "model": {"backbone": {"pretrained": "demo"}},
        "data": {"class_path": "clt_lightning.data.Demo", "init_args": data},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "results.json").write_text(json.dumps({"schema": 1, "run": {"seed": 1}}))
    clt.save_pretrained(folder / "transcoder")
    opened = open_run(folder)
    opened.datamodule.prepare_data()
    sums = StatisticsAccumulator(clip.n_layers, clip.d_model, torch.device("cpu"))
    for batch in opened.batches("test"):
        acts = clip.capture(batch["image"])
        sums.update(acts.x, acts.y)
    with torch.no_grad():
        clt.normalize(sums.result())
        for W in clt.W_dec:
            W.normal_(0, 0.05, generator=torch.Generator().manual_seed(0))
    clt.save_pretrained(folder / "transcoder")
    opened = open_run(folder)

    opened.datamodule.setup("test")
    names = opened.datamodule.classnames
    features = FeatureCollector(opened.clip, opened.transcoder, names, FeatureOptions(k=6, samples=4))
    retrieval = RetrievalCollector(FEATURES)
    with torch.no_grad():
        for batch in opened.batches("test"):
            codes = opened.transcoder.encode(opened.clip.capture(batch["image"]).x)
            features.update(codes, opened.clip.encode_image(batch["image"]), batch["key"], batch["label"])
            retrieval.update(codes, batch["key"], batch["label"])
    collected = features.result("test", opened.head)
    assert collected is not None
    collected.save(folder)
    retrieval.result().save(folder)
    main(["report", "--run", str(folder), "--images", "3", "--queries", "2", "--circuits", "2"])
    return opened


def test_patch_maps_are_the_encoders_codes(run: Run) -> None:
    report = run.folder / "report"
    keys = read_data(report, "sprites")["keys"]
    images = run.images([key for key in keys if key])
    positions, seen = run.clip.n_positions, 0
    with torch.no_grad():
        codes = {key: run.transcoder.encode(run.clip.capture(image[None]).x).dense() for key, image in images.items()}
    for layer in range(run.clip.n_layers):
        for number in range(-(-FEATURES // 64)):
            chunk = read_data(report, f"cards/{layer:02d}_{number:04d}")
            entries = [
                (number * 64 + n, entry, card["peak"])
                for n, card in enumerate(chunk["cards"])
                if card is not None
                for entry in [*card["top"], *(e for _, row in card["quantiles"] for e in row)]
            ]
            maps = unpack_maps(chunk["maps"], np.array([peak for *_, peak in entries]), positions)
            for feature, (image, value, place), peak in entries:
                wanted = codes[keys[image]][layer, :, feature].numpy()
                # a batch of another size rounds differently; the page's scale adds its own step
                np.testing.assert_allclose(maps[place], wanted, atol=2 * RESOLUTION * peak + 1e-4 * peak)
                assert value == pytest.approx(float(np.abs(wanted).max()), rel=1e-3)
                seen += 1
    assert seen > 500


def test_what_copy_as_python_gives_runs(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    text = read_data(run.folder / "report", "features")["python"].replace("LAYER", "2").replace("FEATURE", "7")
    found: dict[str, Any] = {}
    exec(compile(text, "card", "exec"), found)
    assert found["encoder"].shape == (run.clip.d_model,)
    assert found["decoder"].shape == (run.clip.n_layers - 2, run.clip.d_model)
    wanted = run.transcoder.encode(run.clip.capture(found["batch"]["image"]).x).dense()[2, :, 7]
    torch.testing.assert_close(found["codes"], wanted)
    assert str(run.folder) in text


def test_the_pages_of_images_say_what_clip_does(run: Run) -> None:
    report = run.folder / "report"
    keys, pages = read_data(report, "sprites")["keys"], read_data(report, "images")
    assert len(pages["full"]) == 3
    assert len(pages["image"]) == 75
    some = [*pages["full"], pages["image"][1], pages["image"][40]]
    images = run.images([keys[n] for n in some])
    assert run.head is not None
    for number in some:
        page = read_data(report, f"images/{number:05d}")
        image = images[keys[number]]
        with torch.no_grad():
            logits = (run.clip.encode_image(image[None]) @ run.head * run.clip.logit_scale)[0]
            codes = run.transcoder.encode(run.clip.capture(image[None]).x).dense()
        np.testing.assert_allclose(page["logits"], logits, atol=1e-3)
        terms = unpack_column(page["terms"]).reshape(-1, len(logits) + 1)
        np.testing.assert_allclose(terms.sum(0)[:-1], logits, atol=1e-3)
        for layer, part in enumerate(page["codes"]):
            peaks = unpack_column(part["peaks"])
            maps = unpack_maps(part["maps"], peaks, run.clip.n_positions)
            wanted = codes[layer][:, unpack_column(part["features"]).tolist()].T.numpy()
            np.testing.assert_allclose(maps, wanted, atol=2e-4 * float(peaks.max()))
            assert part["active"] == (codes[layer] != 0).sum(1).tolist()
        assert page["full"] == (number in pages["full"])
        assert page["tops"][0] == int(logits.argmax())
        for ablation in page["ablations"][:2]:
            row = ablation["rows"][0]
            layer, feature = (int(unpack_column(page["features"][k])[row]) for k in ("layer", "feature"))
            change = steered(run.clip, run.transcoder, [Edit(layer, feature, "set", 0.0)])
            with torch.no_grad(), change:
                after = (run.clip.encode_image(image[None]) @ run.head * run.clip.logit_scale)[0]
            np.testing.assert_allclose(ablation["after"], after[page["classes"]], atol=2e-3)


def test_a_circuit_is_added_to_the_report(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    report = run.folder / "report"
    keys = read_data(report, "sprites")["keys"]
    before = read_data(report, "circuits")["images"]
    assert len(before) == 2
    number = next(n for n in range(75) if n not in [entry["image"] for entry in before])
    names, head = run.datamodule.classnames, run.head
    assert head is not None
    words = ["graph", "--run", str(run.folder), "--image", keys[number], "--show", "0", "--page"]
    main([*words, "--target", f"{names[3]} - mean of classes"])
    main([*words, "--target", names[5], "--max-nodes", "50"])
    said = capsys.readouterr().out
    assert f"#/circuit/{number}\n" in said
    assert f"#/circuit/{number}?target=1" in said
    listed = {entry["image"]: entry["targets"] for entry in read_data(report, "circuits")["images"]}
    assert listed[number] == [f"{names[3]} - mean of classes", names[5]]
    first, second = read_data(report, f"circuits/{number:05d}")["circuits"]
    image = run.images([keys[number]])[keys[number]]
    with torch.no_grad():
        logits = (run.clip.encode_image(image[None]) @ head * run.clip.logit_scale)[0]
    for circuit, value in ((first, logits[3] - logits.mean()), (second, logits[5])):
        kinds, activation = (unpack_column(circuit["nodes"][name]) for name in ("kind", "activation"))
        assert activation[kinds == 6] == pytest.approx([float(value)], abs=1e-3)
        assert len(unpack_column(circuit["responses"]["targets"])) > 20
    # what it does not fit is told before the graph is made
    for wrong, told in (
        ([*words[:4], "no/such", "--page"], "none of them"),
        ([*words, str(run.folder / "features")], "holds no report"),
        (["graph", "--run", str(run.folder), "--curves", "1", "--page"], "needs --image"),
    ):
        with pytest.raises(SystemExit):
            main(wrong)
        assert told in " ".join(capsys.readouterr().err.split())


def test_any_picture_has_a_page(run: Run) -> None:
    """A picture that is no image of the split, as a file that someone drops gives it."""
    assert run.head is not None
    picture = Image.new("RGBA", (301, 200), (200, 30, 40, 128))
    page = image_page_data(run, picture, "mine.png")
    assert (page["key"], page["label"], page["full"]) == ("mine.png", -1, True)
    tensor = run.clip.preprocess(picture.convert("RGB"))
    with torch.no_grad():
        logits = (run.clip.encode_image(tensor[None]) @ run.head * run.clip.logit_scale)[0]
    np.testing.assert_allclose(page["logits"], logits, atol=1e-3)
    again = image_page_data(run, tensor, "mine.png", full=False)
    assert again["questions"] == page["questions"]
    assert len(again["classes"]) == 5
    json.dumps(page, allow_nan=False)
    with pytest.raises(UserError, match="one image"):
        image_page_data(run, tensor[None])
    with pytest.raises(UserError, match="label 64"):
        image_page_data(run, tensor, label=64)
