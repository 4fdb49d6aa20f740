"""What lies in the report's files, against the arrays it was made from."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clt_lightning.analysis.features import load_features
from clt_lightning.analysis.results import load_evaluation
from clt_lightning.analysis.retrieval import Retrieval
from clt_lightning.clip.images import to_pixels
from clt_lightning.report.cards import CHUNK
from clt_lightning.report.packing import RESOLUTION, unpack_column, unpack_maps
from tests.report.conftest import Made


def test_cards_hold_the_codes_of_the_features(made: Made) -> None:
    features = load_features(made.run)
    seen = 0
    for layer in range(features.info["layers"]):
        content = features.layers[layer]
        for first in range(0, features.info["features"], CHUNK):
            chunk = made.data(f"cards/{layer:02d}_{first // CHUNK:04d}")
            entries = [
                (first + n, kind, entry, card["peak"])
                for n, card in enumerate(chunk["cards"])
                if card is not None
                for kind, found in (("top", card["top"]), ("sample", [e for _, row in card["quantiles"] for e in row]))
                for entry in found
            ]
            peaks = np.array([peak for *_, peak in entries])
            maps = unpack_maps(chunk["maps"], peaks, features.info["positions"])
            assert sorted(entry[2] for _, _, entry, _ in entries) == list(range(len(entries)))
            for feature, kind, (image, value, number), peak in entries:
                same = np.flatnonzero(content[f"{kind}_image"][feature] == image)
                values = content[f"{kind}_value"][feature][same]
                place = same[np.abs(values - value).argmin()]
                wanted = content[f"{kind}_map"][feature][place]
                assert np.abs(maps[number] - wanted).max() <= 2 * RESOLUTION * peak
                assert value == pytest.approx(wanted.max(), rel=1e-4)
                seen += 1
    alive = int((features.stats["frequency"] > 0).sum())
    assert seen == alive * (16 + 8)


def test_index_columns_and_dead_features(made: Made) -> None:
    features = load_features(made.run)
    for layer in range(features.info["layers"]):
        part = made.data(f"layers/{layer:02d}")
        for name in ("frequency", "mean_code", "max_code", "monosemanticity"):
            wanted = features.stats[name][layer].astype(float)
            got = np.array([np.nan if v is None else v for v in part[name]])
            np.testing.assert_allclose(got, wanted, rtol=1e-3)
        np.testing.assert_array_equal(part["image"], features.layers[layer]["top_image"][:, 0])
        dead = np.flatnonzero(features.stats["frequency"][layer] == 0)
        chunk = made.data(f"cards/{layer:02d}_0000")["cards"]
        assert all(chunk[f] is None for f in dead if f < CHUNK)
        assert sum(card is not None for card in chunk) == CHUNK - sum(f < CHUNK for f in dead)


def test_decoder_norms_start_at_the_features_own_layer(made: Made) -> None:
    features = load_features(made.run)
    card = made.data("cards/02_0000")["cards"][5]
    np.testing.assert_allclose(card["decoder_norm"], features.stats["decoder_norm"][2, 5, 2:], rtol=1e-3)


def test_thumbnails_lie_in_their_cells(made: Made) -> None:
    sprites = made.data("sprites")
    size, per_sheet = sprites["size"], sprites["columns"] * sprites["rows"]
    shown = [(image, cell) for image, cell in enumerate(sprites["cell"]) if cell >= 0]
    assert sorted(cell for _, cell in shown) == list(range(len(shown)))
    for image, cell in shown[:: max(1, len(shown) // 25)]:
        sheet = Image.open(made.folder / f"thumbs/{cell // per_sheet:04d}.webp")
        x, y = cell % per_sheet % sprites["columns"] * size, cell % per_sheet // sprites["columns"] * size
        found = np.asarray(sheet.convert("RGB"), float)[y : y + size, x : x + size]
        tensor = made.pictures.image(sprites["keys"][image])
        pixels = Image.fromarray(to_pixels(tensor, made.pictures.mean, made.pictures.std))
        wanted = np.asarray(pixels.resize((size, size), Image.Resampling.LANCZOS), float)
        assert np.abs(found - wanted).mean() < 12  # compressed twice
        assert sprites["labels"][image] == made.pictures.labels[sprites["keys"][image]]


def test_every_image_on_a_page_has_a_thumbnail(made: Made) -> None:
    sprites = made.data("sprites")
    shown = set(made.data("images")["image"])
    for query in made.data("retrieval"):
        shown |= {query["image"]} | {image for layer in query["layers"] for image, _ in layer}
    for path in sorted((made.folder / "data" / "cards").iterdir()):
        for card in filter(None, made.data(f"cards/{path.stem}")["cards"]):
            shown |= {entry[0] for entry in card["top"]}
            shown |= {entry[0] for _, row in card["quantiles"] for entry in row}
    assert all(sprites["cell"][image] >= 0 for image in shown)


def test_neighbours_are_the_nearest(made: Made) -> None:
    retrieval = Retrieval.load(made.run)
    for query in made.data("retrieval"):
        for layer, found in enumerate(query["layers"]):
            numbers, cosines = retrieval.nearest(query["image"], layer, 8)
            assert [image for image, _ in found] == numbers.tolist()
            np.testing.assert_allclose([s for _, s in found], cosines, rtol=1e-3)


def test_terms_of_every_image_sum_to_its_logits(made: Made) -> None:
    pages = made.data("images")
    assert len(pages["image"]) == len(made.data("sprites")["keys"])
    for number in pages["image"][::7]:
        page = made.data(f"images/{number:05d}")
        for terms, logits in (("terms", "logits"), ("replaced_terms", "replaced")):
            assert (page[terms] is None) == (terms == "replaced_terms" and number not in pages["full"])
            if page[terms] is not None:
                sums = unpack_column(page[terms]).reshape(-1, len(page["logits"]) + 1).sum(0)
                np.testing.assert_allclose(sums[:-1], page[logits], atol=1e-4)
        assert page["picture"].startswith("data:image/webp;base64,")


def test_the_list_of_images_says_what_they_are_seen_as(made: Made) -> None:
    pages = made.data("images")
    assert pages["without"] == 0
    for number, predicted, replaced in zip(pages["image"], pages["predicted"], pages["replaced"]):
        if number % 9 == 0:
            page = made.data(f"images/{number:05d}")
            assert (page["image"], page["key"]) == (number, made.data("sprites")["keys"][number])
            assert predicted == page["classes"][0] == int(np.argmax(page["logits"]))
            assert replaced == int(np.argmax(page["replaced"]))
            assert page["label"] in page["classes"]


def test_tables_hold_the_evaluations_numbers(made: Made) -> None:
    evaluation = load_evaluation(made.run)

    def rows(name: str) -> list[dict[str, str]]:
        with (made.folder / "tables" / f"{name}.csv").open(encoding="utf-8") as stream:
            return list(csv.DictReader(stream))

    for row, arm in zip(rows("zero_shot"), evaluation["zero_shot"]["arms"], strict=True):
        assert row["kind"] == arm["kind"]
        assert float(row["top1"]) == arm["top1"]["value"]
        assert float(row["kl_high"]) == arm["kl"]["high"]
    for row in rows("reconstruction"):
        numbers = evaluation["reconstruction"][row["metric"]][row["tokens"]]
        assert [float(row[f"layer_{i}"]) for i in range(4)] == numbers["layers"]
    matrix = [[float(row[f"target_{j}"]) for j in range(4)] for row in rows("contributions_all_centred")]
    assert matrix == evaluation["contributions"]["all"]["centred"]
    first = rows("faithfulness")[1]
    assert float(first["top1"]) == evaluation["faithfulness"][0]["drop_top"]["top1"][1]["value"]
    assert [float(r["p_value"]) for r in rows("population")] == [
        c["p_value"] for c in evaluation["population"]["checks"]
    ]


def test_every_file_that_the_pages_name_exists(made: Made) -> None:
    def names(value: object) -> list[str]:
        if isinstance(value, str):
            return [value]
        parts = value.values() if isinstance(value, dict) else value
        return [name for part in parts for name in names(part)]  # type: ignore[attr-defined]

    listed = names(made.data("report")["files"])
    assert len(listed) > 15
    assert all((made.folder / name).is_file() for name in listed)
    assert {Path(name).suffix for name in listed} == {".svg", ".png", ".csv"}


def test_nothing_points_outside_the_folder(made: Made) -> None:
    for path in [made.folder / "index.html", *made.folder.glob("assets/**/*.*")]:
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//[a-z]+\.", text), path
    html = (made.folder / "index.html").read_text(encoding="utf-8")
    for address in re.findall(r'(?:src|href)="([^"#:]+)"', html):
        assert (made.folder / address).is_file(), address
