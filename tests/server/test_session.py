"""What the pages are told is what the package computes; what they may not ask gets one clear line."""

from __future__ import annotations

import base64
import io
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clt_lightning.analysis import Edit, steer
from clt_lightning.analysis.features import load_features
from clt_lightning.analysis.names import embed_words
from clt_lightning.core.errors import UserError
from clt_lightning.server import SessionOptions
from clt_lightning.server.session import KEPT, MOST_EDITS
from tests.server.conftest import FEATURES, STORED, Served

EDITS = [
    {"layer": 1, "feature": 3, "kind": "set", "value": 4.0},
    {"layer": 3, "feature": 8, "kind": "scale", "value": 0.0},
]


def png(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def noise(size: tuple[int, int] = (70, 50), seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8))


def test_what_there_is(served: Served) -> None:
    status, about = served.post("about")
    assert status == 200
    assert about["layers"] == 4
    assert about["features"] == FEATURES
    assert len(about["stored"]) == STORED
    assert about["classnames"] == list(served.session.run.datamodule.classnames)
    batch = next(iter(served.session.run.batches("test", limit=STORED)))
    assert about["stored"] == [[k, int(v)] for k, v in zip(batch["key"], batch["label"])]


def test_a_dropped_image_is_what_the_backbone_sees(served: Served) -> None:
    picture = noise()
    status, found = served.post("drop?name=my%20cat.png", png(picture))
    assert status == 200
    assert (found["name"], found["label"]) == ("my cat.png", -1)
    clip = served.session.run.clip
    p = clip.logits(clip.encode_image(picture), served.session.head).double().softmax(1)[0]
    np.testing.assert_allclose(found["probabilities"], p.numpy(), atol=1e-7)
    shown = Image.open(io.BytesIO(base64.b64decode(found["picture"].split(",")[1])))
    assert shown.size == (clip.image_size, clip.image_size)
    page = served.post("page", {"image": found["image"]})[1]
    assert page["key"] == "my cat.png"
    assert max(range(len(page["logits"])), key=page["logits"].__getitem__) == int(p.argmax())


def test_a_picked_image_is_the_stored_one_to_the_last_bit(served: Served) -> None:
    session = served.session
    batch = next(iter(session.run.batches("test", limit=STORED)))
    found = served.post("pick", {"key": batch["key"][5]})[1]
    assert torch.equal(session._get(found["image"]).image, batch["image"][5])
    assert found["label"] == int(batch["label"][5])
    # one that is not stored is looked for in the split
    keys = [key for part in session.run.batches("test") for key in part["key"]]
    other = next(key for key in keys if key not in session.keys)
    again = served.post("pick", {"key": other})[1]
    assert torch.equal(session._get(again["image"]).image, session.run.images([other])[other])
    status, answer = served.post("pick", {"key": "no/such"})
    assert status == 400
    assert "no/such" in answer["error"]


def test_steering_is_steer(served: Served) -> None:
    session = served.session
    batch = next(iter(session.run.batches("test", limit=STORED)))
    edits = [Edit(**entry) for entry in EDITS]  # type: ignore[arg-type]
    run = session.run
    wanted = steer(run.clip, run.transcoder, [batch], edits, session.head, session.classnames, "patch")
    number = served.post("pick", {"key": batch["key"][2]})[1]["image"]
    found = served.post("steer", {"image": number, "edits": EDITS, "tokens": "patch"})[1]
    np.testing.assert_allclose(found["before"], wanted.before[2].numpy(), atol=1e-6)
    np.testing.assert_allclose(found["after"], wanted.after[2].numpy(), atol=1e-6)

    lines = served.post("flips", {"edits": EDITS, "tokens": "patch"})[1]
    assert [line["done"] for line in lines] == [16, STORED, STORED]
    np.testing.assert_allclose(lines[-1]["mean"], wanted.mean_change.numpy(), atol=1e-6)
    assert lines[-1]["top1"] == pytest.approx(wanted.top1())
    flips = {flip[0]: (flip[1], flip[3]) for line in lines for flip in line["flips"]}
    was, now = wanted.before.argmax(1).tolist(), wanted.after.argmax(1).tolist()
    assert flips == {n: (a, b) for n, (a, b) in enumerate(zip(was, now)) if a != b}
    assert flips


def test_codes_are_the_encoders(served: Served) -> None:
    session = served.session
    found = served.post("pick", {"key": session.keys[0]})[1]
    dense = session.run.transcoder.encode(session.run.clip.capture(session._get(found["image"]).image[None]).x).dense()
    layer, feature = 2, int((dense[2] > 0).sum(0).argmax())
    codes = served.post("codes", {"image": found["image"], "features": [[layer, feature], [0, 1]]})[1]["codes"]
    np.testing.assert_array_equal(np.float32(codes[0]["map"]), dense[layer, :, feature].detach().numpy())
    assert codes[0]["max"] == max(codes[0]["map"], key=abs)
    np.testing.assert_array_equal(np.float32(codes[1]["map"]), dense[0, :, 1].detach().numpy())


def test_what_matters_most_is_suggested(served: Served) -> None:
    found = served.post("pick", {"key": served.session.keys[3]})[1]
    effects = [abs(entry[2]) for entry in found["suggested"]]
    assert effects == sorted(effects, reverse=True)
    assert effects[0] > 0


def test_a_newer_question_ends_an_older_one(served: Served) -> None:
    session = served.session
    edits = [Edit(0, 1, "set", 1.0)]
    old, seen = session.flips(edits, "all", "original"), []
    seen.append(next(old))
    new = session.flips(edits, "all", "original")
    next(new)
    assert list(old) == []
    assert len(list(new)) == 2
    running = session.flips(edits, "all", "original")
    next(running)
    session.close()
    assert list(running) == []


def test_the_one_image_does_not_wait_for_the_many(served: Served) -> None:
    session = served.session
    number = served.post("pick", {"key": session.keys[0]})[1]["image"]
    edits = [Edit(0, 1, "set", 1.0)]
    session.steer(number, edits, "all", "original")
    times: list[float] = []
    done = threading.Event()

    def many() -> None:
        while not done.is_set():
            list(session.flips(edits, "all", "original"))

    thread = threading.Thread(target=many)
    thread.start()
    for step in range(20):
        started = time.perf_counter()
        session.steer(number, [Edit(0, 1, "set", float(step))], "all", "original")
        times.append(time.perf_counter() - started)
    done.set()
    thread.join(30)
    assert sorted(times)[10] < 0.2, times  # a batch of the many and the one: milliseconds on the demo


def test_old_images_are_forgotten(served: Served) -> None:
    first = served.post("pick", {"key": served.session.keys[0]})[1]["image"]
    for _ in range(KEPT):
        last = served.post("pick", {"key": served.session.keys[1]})[1]["image"]
    assert served.post("steer", {"image": last, "edits": []})[0] == 200
    status, answer = served.post("steer", {"image": first, "edits": []})
    assert status == 400
    assert "no longer at hand" in answer["error"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"%PDF-1.7 this is a document", "no image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image"),
        (png(noise())[:200], "no image"),
        (b"GIF89a" + b"\0" * 40, "no image"),
    ],
)
def test_a_file_that_is_no_image_gets_a_message(served: Served, data: bytes, says: str) -> None:
    status, answer = served.post("drop?name=paper.pdf", data)
    assert status == 400
    assert answer["error"].startswith("paper.pdf is no image that can be read: ")
    assert says in answer["error"]
    assert "JPEG, PNG" in answer["error"]
    assert len(answer["error"]) < 400


def test_a_picture_of_too_many_pixels_is_not_decoded(served: Served) -> None:
    status, answer = served.post("drop?name=big.png", png(Image.new("1", (12000, 9000))))
    assert status == 400
    assert "12,000 x 9,000" in answer["error"]
    assert "data.init_args" not in answer["error"]


def test_a_file_that_is_too_long_is_not_read(served: Served) -> None:
    status, answer = served.post("drop?name=film.mp4", b"", Content_Length=str(40 << 20))
    assert status == 413
    assert "33,554,432" in answer["error"]


def test_other_forms_of_images_are_read(served: Served) -> None:
    for picture, kind in (
        (noise().convert("L"), "PNG"),
        (noise().convert("RGBA"), "WEBP"),
        (noise(), "JPEG"),
        (noise().convert("P"), "GIF"),
    ):
        assert served.post("drop", png(picture, kind))[0] == 200


BAD: list[tuple[str, Any, str]] = [
    ("steer", b"{", "not JSON"),
    ("steer", b"[1]", "no table"),
    ("steer", b"\xff\xfe", "not JSON"),
    ("steer", b"[" * 60000, "JSON"),
    ("steer", {"edits": []}, "image: expected a text"),
    ("steer", {"image": 1, "edits": []}, "image: expected a text"),
    ("steer", {"image": "999", "edits": []}, "no longer at hand"),
    ("steer", {"image": "IMAGE"}, "edits: expected a list"),
    ("steer", {"image": "IMAGE", "edits": [1]}, "layer, feature, kind and value"),
    ("steer", {"image": "IMAGE", "edits": [{**EDITS[0], "value": "4"}]}, "value: expected a number"),
    ("steer", {"image": "IMAGE", "edits": [{**EDITS[0], "value": True}]}, "value: expected a number"),
    ("steer", b'{"image": "IMAGE", "edits": [{"layer": 0, "feature": 1, "kind": "set", "value": NaN}]}', "a number"),
    ("steer", b'{"image": "IMAGE", "edits": [{"layer": 0, "feature": 1, "kind": "set", "value": 1e999}]}', "a number"),
    ("steer", {"image": "IMAGE", "edits": [{**EDITS[0], "kind": "drop"}]}, "set, scale or add"),
    ("steer", {"image": "IMAGE", "edits": [{**EDITS[0], "kind": []}]}, "set, scale or add"),
    ("steer", {"image": "IMAGE", "edits": [{**EDITS[0], "layer": 1.5}]}, "layer: expected a whole number"),
    ("steer", {"image": "IMAGE", "edits": [{**EDITS[0], "layer": 4}]}, "4/3 does not exist"),
    ("steer", {"image": "IMAGE", "edits": [{**EDITS[0], "feature": -1}]}, "does not exist"),
    ("steer", {"image": "IMAGE", "edits": EDITS * MOST_EDITS}, f"at most {MOST_EDITS}"),
    ("steer", {"image": "IMAGE", "edits": EDITS, "tokens": "some"}, "cls, register, patch, all"),
    ("steer", {"image": "IMAGE", "edits": EDITS, "base": ["original"]}, "expected words"),
    ("codes", {"image": "IMAGE", "features": [[0]]}, "pairs of layer and feature"),
    ("codes", {"image": "IMAGE", "features": [[0, FEATURES]]}, "does not exist"),
    ("codes", {"image": "IMAGE", "features": [[0, 0]] * 65}, "at most 64"),
    ("thumbnails", {"images": [0, STORED]}, f"no stored image {STORED}"),
    ("thumbnails", {"images": [-1]}, "no stored image -1"),
    ("thumbnails", {"images": "all"}, "expected a list"),
    ("pick", {"key": None}, "key: expected a text"),
    ("page", {"image": None}, "image: expected a text"),
    ("search", {"phrase": "  "}, "give a word"),
    ("search", {"phrase": "red " * 200}, "at most 300"),
    ("search", {"phrase": "red zeppelin"}, "zeppelin"),
]


@pytest.mark.parametrize(("name", "body", "says"), BAD)
def test_a_question_that_is_wrong_gets_one_line(served: Served, name: str, body: Any, says: str) -> None:
    image = served.post("pick", {"key": served.session.keys[0]})[1]["image"]
    if isinstance(body, bytes):
        body = body.replace(b"IMAGE", image.encode())
    elif body.get("image") == "IMAGE":
        body = body | {"image": image}
    status, answer = served.post(name, body)
    assert status == 400, answer
    assert says in answer["error"]
    assert "\n" not in answer["error"]


def test_a_wrong_question_for_the_many_gets_its_line(served: Served) -> None:
    lines = served.post("flips", {"edits": [{**EDITS[0], "layer": 9}]})[1]
    assert "9/3 does not exist" in lines[-1]["error"]


def test_phrases(served: Served) -> None:
    session, phrase = served.session, "red circle"
    found = served.post("search", {"phrase": f"  {phrase} "})[1]
    assert found["phrase"] == phrase
    run = session.run
    text = embed_words(run.clip, [phrase])
    assert text is not None
    batch = next(iter(run.batches("test", limit=STORED)))
    cosines = (run.clip.encode_image(batch["image"]) @ text[0]).numpy()
    order = [n for n, _ in found["images"]]
    assert order == np.argsort(-cosines, kind="stable")[: len(order)].tolist()
    np.testing.assert_allclose([c for _, c in found["images"]], cosines[order], atol=1e-5)

    # what responds: the mean image direction, with whole matrices
    texts = embed_words(run.clip, [*session.classnames, *load_features(served.run).info["words"]])
    assert texts is not None
    direction = torch.nn.functional.normalize(text[0].double() - texts.double().mean(0), dim=0)
    E = run.clip.encode_image(batch["image"]).double()
    E = E - E.mean(0)
    assert session.source is not None
    retrieval = session.source.retrieval
    assert retrieval is not None
    rows = [retrieval.keys.index(key) for key in batch["key"]]
    for layer, feature, cosine, images in found["responds"][:5]:
        codes = np.where(retrieval.indices[layer, rows] == feature, np.abs(retrieval.values[layer, rows]), 0).sum(1)
        mean = (torch.from_numpy(codes).double()[:, None] * E).sum(0)
        assert images == int((codes > 0).sum()) >= 5
        assert cosine == pytest.approx(float(mean @ direction / mean.norm()), abs=1e-6)
    assert all(row[2] > 0 for row in found["writes"])


def test_without_stored_images(served: Served) -> None:
    from clt_lightning.server import Session

    bare = Session(served.session.run, SessionOptions(images=0))
    assert bare.about()["stored"] == []
    image = bare.drop("x.png", png(noise()))["image"]
    assert len(bare.steer(image, [], "all", "original")["after"]) == len(bare.classnames)
    assert [line["done"] for line in bare.flips([Edit(0, 0, "set", 1.0)], "all", "original")] == [0]
    found = bare.search("red")
    assert found["images"] == []
    assert found["responds"] is None
    with pytest.raises(UserError, match="--images must be 0 or more"):
        SessionOptions(images=-1)
