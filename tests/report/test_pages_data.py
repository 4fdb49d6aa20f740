"""What lies in the report's files, against the arrays it was made from."""

from __future__ import annotations

import base64
import csv
import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clt_lightning.analysis.features import load_features
from clt_lightning.analysis.results import load_evaluation
from clt_lightning.analysis.retrieval import Retrieval
from clt_lightning.backbone.clip.images import to_pixels
from clt_lightning.report.cards import CHUNK
from clt_lightning.report.catalogue import AGREES, PUSHES_AWAY, WRITES_OTHERS, columns, conflict, layer_crops
from clt_lightning.report.packing import RESOLUTION, unpack_column, unpack_maps
from tests.report.conftest import Made
from tests.report.made import CLASSES


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
        part = {name: unpack_column(text) for name, text in made.data(f"layers/{layer:02d}").items()}
        for name in (
            "frequency",
            "mean_code",
            "max_code",
            "monosemanticity",
            "lift",
            "lift_low",
            "name_kind",
            "lift_class",
        ):
            np.testing.assert_array_equal(part[name], features.stats[name][layer])
        np.testing.assert_array_equal(part["image"], features.layers[layer]["top_image"][:, 0])
        alive = features.stats["frequency"][layer] > 0
        np.testing.assert_array_equal(part["images"], np.rint(features.stats["image_frequency"][layer] * 240))
        np.testing.assert_allclose(part["cls_share"][alive], features.stats["position_share"][layer, alive, 0])
        assert np.isnan(part["cls_share"][~alive]).all()
        assert features.effects is not None
        np.testing.assert_array_equal(part["margin"], features.effects["margin_mean"][layer])
        chunk = made.data(f"cards/{layer:02d}_0000")["cards"]
        dead = np.flatnonzero(~alive)
        assert all(chunk[f] is None for f in dead if f < CHUNK)
        assert sum(card is not None for card in chunk) == CHUNK - sum(f < CHUNK for f in dead)


def test_layers_written_are_counted_by_energy(made: Made) -> None:
    features = load_features(made.run)
    features.stats["decoder_norm"][0, 0] = [1, 0, 0, 0]
    features.stats["decoder_norm"][0, 1] = [1, 1, 1, 1]
    features.stats["decoder_norm"][0, 2] = [0, 0, 0, 2]
    found = columns(features, 0)
    np.testing.assert_allclose(found["written"][:3], [1, 4, 1])
    np.testing.assert_allclose(found["reach"][:3], [0, 1.5, 3])
    np.testing.assert_allclose(columns(features, 3)["written"], 1)


def test_a_name_and_what_the_feature_does_are_compared(made: Made) -> None:
    features = load_features(made.run)
    judged = 0
    for layer in range(features.info["layers"]):
        named = features.stats["name_kind"][layer] == 1
        assert features.effects is not None
        n = features.stats["lift"][layer] / len(CLASSES) * features.effects["images"][layer]
        for f, found in enumerate(conflict(features, layer)):
            if not named[f]:
                assert found == 0
            elif n[f] > 12:  # the classes are not quite of one size
                # as `make_effects` has it: every 13th lowers its class, every 9th raises another
                assert found == (WRITES_OTHERS if f % 9 == 0 else PUSHES_AWAY if f % 13 == 0 else AGREES)
                judged += 1
            elif n[f] < 2:
                assert found == 0  # of so few images nothing is said
    assert judged > 40


def test_crops_are_where_a_feature_is_strongest(made: Made) -> None:
    features = load_features(made.run)
    content = features.layers[1]
    part = made.data("crops/01")
    image, position = (unpack_column(part[name]).reshape(-1, 4) for name in ("image", "position"))
    np.testing.assert_array_equal(image, content["top_image"][:, :4])
    for feature, place in ((3, 0), (10, 2)):
        codes = np.abs(content["top_map"][feature, place])
        assert codes[position[feature, place]] == codes[1:].max()
    only_cls = features.layers[0] | {"top_map": np.zeros_like(content["top_map"])}
    only_cls["top_map"][..., 0] = 1.0
    bare = dataclasses.replace(features, layers=[only_cls])
    assert (unpack_column(layer_crops(bare, 0)[0]["position"]) == 0).all()


def test_cards_say_what_features_do(made: Made) -> None:
    features = load_features(made.run)
    effects, near = features.effects, features.neighbours
    assert effects is not None
    assert near is not None
    for layer, feature in ((1, 3), (3, 64), (0, 1)):
        card = made.data(f"cards/{layer:02d}_{feature // CHUNK:04d}")["cards"][feature % CHUNK]
        does = card["does"]
        mean, spread, total = does["margin"]
        assert mean == pytest.approx(effects["margin_mean"][layer, feature], rel=1e-3)
        assert spread == pytest.approx(effects["margin_std"][layer, feature], rel=1e-3)
        assert total == pytest.approx(effects["margin_sum"][layer, feature], rel=1e-3)
        direct = dict(zip(effects["direct_class"][layer, feature].tolist(), effects["direct"][layer, feature].tolist()))
        assert [c for c, _ in does["direct"]] == sorted(direct, key=lambda c: -direct[c])
        for c, v in does["direct"]:
            assert v == pytest.approx(direct[c], rel=1e-3)
        by_class = effects["by_class"][layer, feature] / effects["predicted"]
        assert [c for c, _ in does["classes"]] == np.argsort(-by_class, kind="stable").tolist()
        np.testing.assert_allclose(does["through"], effects["direct_by_target"][layer, feature, layer:], rtol=1e-3)
        first, counts = card["histogram"]
        whole = np.zeros(64, int)
        whole[first : first + len(counts)] = counts
        np.testing.assert_array_equal(whole, features.stats["histogram"][layer, feature])
        shares = np.frombuffer(base64.b64decode(card["positions"]["values"]), "u1") / 255 * card["positions"]["top"]
        wanted = features.stats["position_share"][layer, feature]
        np.testing.assert_allclose(shares, wanted, atol=wanted.max() / 400)
        for kind in ("decoder", "encoder", "together"):
            assert [f for _, f, _ in card["near"][kind]] == near[f"{kind}_feature"][layer, feature].tolist()
            assert {k for k, _, _ in card["near"][kind]} == {layer}
        for kind, later in (("reader", True), ("writer", False)):
            assert all((k > layer) == later for k, _, _ in card["near"][kind])
    assert "writer" in card["near"]
    assert card["near"]["writer"] == []  # nothing writes before layer 0


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
