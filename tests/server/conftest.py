"""A run on the demo's CLIP with its report, and a server of it, started once; what browsers and others say to it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from clt_lightning.analysis.features import FeatureCollector, FeatureOptions
from clt_lightning.analysis.retrieval import RetrievalCollector
from clt_lightning.analysis.run import open_run
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.report import ReportOptions, build_report
from clt_lightning.report.source import read_source
from clt_lightning.server import LocalServer, Session, SessionOptions
from clt_lightning.server.api import connect
from clt_lightning.transcoder import CrossLayerTranscoder, StatisticsAccumulator, TopK

FEATURES, STORED = 64, 24


def make_served(folder: Path, tars: Path) -> Path:
    """A run with random decoders, its features and codes from 48 renders, and its report."""
    folder.mkdir(parents=True)
    clip = FrozenCLIP(pretrained="demo")
    clt = CrossLayerTranscoder(clip.n_layers, clip.d_model, FEATURES, TopK(8), seed=1)
    data = {"root": str(tars), "n_train": 256, "n_test": 75, "world": 5, "batch_size": 24, "num_workers": 0}
    config = {
        "model": {"backbone": {"pretrained": "demo"}},
        "data": {"class_path": "clt_lightning.data.Demo", "init_args": data},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "results.json").write_text(json.dumps({"schema": 1, "run": {"seed": 1, "started": "2026-11-20"}}))
    clt.save_pretrained(folder / "transcoder")
    run = open_run(folder)
    run.datamodule.prepare_data()
    sums = StatisticsAccumulator(clip.n_layers, clip.d_model, torch.device("cpu"))
    batches = list(run.batches("test", limit=48))
    for batch in batches:
        acts = clip.capture(batch["image"])
        sums.update(acts.x, acts.y)
    with torch.no_grad():
        clt.normalize(sums.result())
        for W in clt.W_dec:
            W.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    clt.save_pretrained(folder / "transcoder")
    clt.fold_()
    names = run.datamodule.classnames
    features, retrieval = (
        FeatureCollector(clip, clt, names, FeatureOptions(k=4, samples=4)),
        RetrievalCollector(FEATURES),
    )
    with torch.no_grad():
        for batch in batches:
            codes = clt.encode(clip.capture(batch["image"]).x)
            features.update(codes, clip.encode_image(batch["image"]), batch["key"], batch["label"])
            retrieval.update(codes, batch["key"], batch["label"])
    found = features.result("test", run.head)
    assert found is not None
    found.save(folder)
    retrieval.result().save(folder)
    build_report(folder, ReportOptions(images=1, mistakes=0, pages=1, circuits=1, queries=1))
    return folder


@dataclass
class Served:
    """A server at work.

    Attributes:
        run: the run's folder.
        server: it.
        session: what it answers from.
    """

    run: Path
    server: LocalServer
    session: Session

    @property
    def port(self) -> int:
        return self.server.guard.port

    def raw(self, text: bytes, timeout: float = 20.0) -> bytes:
        """Sends bytes, and reads until the other side ends or has said all that it announced."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            connection.sendall(text)
            answer = b""
            while part := connection.recv(1 << 16):
                answer += part
                head, gap, body = answer.partition(b"\r\n\r\n")
                length = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
                if gap and length and len(body) >= int(length[0].split(b":")[1]):
                    break
            return answer

    def get(self, target: str | bytes, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """A GET with a right Host, unless another is given."""
        return self._ask("GET", target, b"", headers)

    def post(self, name: str, body: Any = None, token: str | None = None, **headers: str) -> tuple[int, Any]:
        """A question with the token, unless another is given; the answer as values."""
        data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        told = {"X_CLT_Token": self.server.guard.token if token is None else token, "Content_Length": str(len(data))}
        status, kind, answer = self._ask("POST", f"/api/{name}", data, told | headers)
        if kind["content-type"] == "application/x-ndjson":
            return status, [json.loads(line) for line in answer.splitlines()]
        return status, json.loads(answer)

    def _ask(
        self, method: str, target: str | bytes, body: bytes, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        path = target if isinstance(target, bytes) else target.encode()
        lines = {"Host": f"127.0.0.1:{self.port}"} | {name.replace("_", "-"): v for name, v in headers.items()}
        text = b"".join(f"{name}: {value}\r\n".encode() for name, value in lines.items() if value)
        answer = self.raw(method.encode() + b" " + path + b" HTTP/1.1\r\n" + text + b"\r\n" + body)
        head, _, content = answer.partition(b"\r\n\r\n")
        first, *rest = head.decode().split("\r\n")
        return int(first.split()[1]), {k.lower(): v for k, v in (line.split(": ", 1) for line in rest)}, content


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, demo_tars: Path) -> Iterator[Served]:
    run = make_served(tmp_path_factory.mktemp("served") / "shown" / "version_0", demo_tars)
    with LocalServer(0) as server:
        server.root = run / "report"
        session = Session(open_run(run), SessionOptions(images=STORED), read_source(run, "test"))
        connect(server, session)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield Served(run, server, session)
        server.shutdown()
        thread.join(10)
