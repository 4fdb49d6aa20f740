"""A local server reads no file but the report's, and answers no page but its own."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from clt_lightning.server.guard import Guard, Refused, find_file, words_of
from tests.server.conftest import Served


@pytest.fixture(scope="module", autouse=True)
def _traps(served: Served) -> None:
    """What lies around a report, and links that lead out of it."""
    report = served.run / "report"
    (served.run / "secret.json").write_text('{"secret": 1}')
    (served.run.parent / "secret.css").write_text("secret")
    links = {"out.json": served.run / "secret.json", "outside": served.run, "circle.js": report / "circle.js"}
    links["inside.css"] = report / "assets" / "css" / "tokens.css"
    for name, target in links.items():
        if not (report / name).is_symlink():  # a worker may come to this file twice
            (report / name).symlink_to(target)
    (report / ".hidden.json").write_text('{"secret": 1}')
    (report / "notes.txt").write_text("secret")


ATTACKS = [
    "/../secret.json",
    "/../../secret.css",
    "/assets/../../secret.json",
    "/..%2fsecret.json",
    "/%2e%2e/secret.json",
    "/%2e%2e%2fsecret.json",
    "/%252e%252e/secret.json",
    "/.%2e/secret.json",
    "/assets/%2e%2e/%2e%2e/secret.json",
    "/..\\secret.json",
    "/..%5csecret.json",
    "/assets/..%c0%af..%c0%afsecret.json",
    "/%c0%ae%c0%ae/secret.json",
    "/out.json",
    "/outside/secret.json",
    "/outside/results.json",
    "/circle.js",
    "/.hidden.json",
    "/assets/.%00/x.js",
    "/index.html%00.css",
    "/secret.json%00",
    "//etc/passwd",
    "/etc/passwd",
    "/%2fetc/passwd",
    "//%2fetc%2fpasswd",
    "///etc/passwd",
    "/file:///etc/passwd",
    "/notes.txt",
    "/assets",
    "/assets/",
    "/data",
    "/index.html/",
    "/index.html/x.js",
    "/" + "a" * 5000 + ".js",
    "/" + "a/" * 900 + "b.js",
    "/con.js\u2025/../../secret.json",
    "/index.html;/../../secret.json",
    "/%",
    "/%zz/../../secret.json",
    "/data/../../../../../../../../etc/passwd",
    "/proc/self/environ",
    "/clt-report.json/../../results.json",
    "http://127.0.0.1/../secret.json",
    "file:///etc/passwd",
    "*",
    "secret.json",
]


@pytest.mark.parametrize("target", ATTACKS)
def test_no_path_leads_out_of_the_report(served: Served, target: str) -> None:
    for path in (target.encode(), target.encode() + b"?x=1"):
        status, _, body = served.get(path)
        assert status in (400, 404, 414), body[:200]
        assert b"secret" not in body.replace(b"secret.json", b"").replace(b"secret.css", b"")
        assert b"root:" not in body
    assert str(served.run).encode() not in body


def test_made_absolute_paths_do_not_help(served: Served) -> None:
    for absolute in (served.run / "secret.json", Path("/etc/hostname")):
        for target in (f"/{absolute}", f"{absolute}", str(absolute).replace("/", "%2f")):
            status, _, body = served.get(target)
            assert status in (400, 404)
            assert b"secret" not in body.replace(b"secret.json", b"")


def test_files_of_the_report_are_served_as_they_are(served: Served) -> None:
    report = served.run / "report"
    for name in ("data/features.js", "assets/css/tokens.css", "data/cards/00_0000.js", "inside.css", "clt-report.json"):
        status, headers, body = served.get(f"/{name}?v=1#x")
        assert (status, body) == (200, (report / name).read_bytes())
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["x-content-type-options"] == "nosniff"
    assert served.get("/data/features%2ejs")[2] == (report / "data" / "features.js").read_bytes()
    status, headers, body = served.get("/")
    assert status == 200
    assert headers["content-type"].startswith("text/html")
    # the same page, told the secret in one line
    lines = [line for line in body.decode().splitlines() if served.server.guard.token not in line]
    assert lines == (report / "index.html").read_text().splitlines()


def test_head_tells_the_length_alone(served: Served) -> None:
    length = (served.run / "report" / "data" / "features.js").stat().st_size
    answer = served.raw(f"HEAD /data/features.js HTTP/1.0\r\nHost: 127.0.0.1:{served.port}\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    assert f"Content-Length: {length}".encode() in head
    assert body == b""


NAMES = [
    *("evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1.evil.example:{port}"),
    *("[::1]:{port}", "0:{port}", "127.1:{port}", "localhost.:{port}", "user@127.0.0.1:{port}"),
    "127.0.0.1:{port},evil.example",
]


@pytest.mark.parametrize("host", NAMES)
def test_another_name_of_this_machine_is_refused(served: Served, host: str) -> None:
    for path in ("/", "/data/features.js"):
        status, _, body = served.get(path, Host=host.format(port=served.port))
        assert status == 421
        assert served.server.guard.token.encode() not in body
    assert served.post("about", Host=host.format(port=served.port))[0] == 421


def test_the_hosts_own_names(served: Served) -> None:
    for host in (f"localhost:{served.port}", f"LOCALHOST:{served.port}"):
        assert served.get("/", Host=host)[0] == 200
    assert served.raw(b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 400")
    twice = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nHost: evil.example\r\n\r\n".encode()
    assert served.raw(twice).startswith(b"HTTP/1.1 400")
    assert served.raw(b"GET /\r\n\r\n").startswith((b"HTTP/1.1 400", b'{"error"'))


def test_other_sites_get_nothing(served: Served) -> None:
    own = f"http://127.0.0.1:{served.port}"
    for origin in (
        "http://evil.example",
        "null",
        "https://127.0.0.1",
        f"https://127.0.0.1:{served.port}",
        "http://127.0.0.1:1",
    ):
        assert served.get("/data/features.js", Origin=origin)[0] == 403
        assert served.post("about", Origin=origin)[0] == 403
    assert served.post("about", Origin=own)[0] == 200
    # a script or a picture of another site's page
    for site in ("cross-site", "same-site"):
        assert served.get("/data/features.js", Sec_Fetch_Site=site, Sec_Fetch_Mode="no-cors")[0] == 403
        assert served.get("/thumbs/0000.webp", Sec_Fetch_Site=site, Sec_Fetch_Mode="no-cors")[0] == 403
        assert served.post("about", Sec_Fetch_Site=site, Sec_Fetch_Mode="cors")[0] == 403
        assert served.get("/", Sec_Fetch_Site=site, Sec_Fetch_Mode="navigate")[0] == 200  # a link that leads here
    assert served.get("/data/features.js", Sec_Fetch_Site="same-origin", Sec_Fetch_Mode="no-cors")[0] == 200


def test_a_question_needs_the_secret(served: Served) -> None:
    assert served.post("about")[0] == 200
    for token in ("", "x", served.server.guard.token[:-1], served.server.guard.token + "x", "\u00e9"):
        status, answer = served.post("about", token=token)
        assert status == 403, token
        assert "load it again" in answer["error"]
    assert served.get("/api/about", X_CLT_Token=served.server.guard.token)[0] == 405
    assert served.get("/api/about")[0] == 403
    assert served.post("nothing")[0] == 404
    assert served.post("../index.html")[0] == 404
    secret = f"X-CLT-Token: {served.server.guard.token}\r\nContent-Length: 1\r\n"
    text = f"POST /index.html HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n{secret}\r\nx"
    assert served.raw(text.encode()).startswith(b"HTTP/1.1 405")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE", "GETX"])
def test_other_methods_are_refused(served: Served, method: str) -> None:
    answer = served.raw(f"{method} / HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n\r\n".encode())
    assert answer.split()[1] in (b"501", b"405")
    assert served.server.guard.token.encode() not in answer


@pytest.mark.parametrize(
    ("length", "status"),
    [
        ("", 411),
        ("-1", 400),
        ("1e3", 400),
        ("+1", 400),
        ("\u0661", 400),
        ("99999999999", 413),
        ("9" * 40, 400),
        ("0x10", 400),
        ("2, 2", 400),
    ],
)
def test_a_length_that_is_none(served: Served, length: str, status: int) -> None:
    assert served.post("about", b"{}", Content_Length=length)[0] == status


def test_lengths_that_hide_a_second_request(served: Served) -> None:
    start = f"POST /api/about HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nX-CLT-Token: {served.server.guard.token}\r\n"
    hidden = f"GET /data/features.js HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n\r\n"
    for lines in (
        "Content-Length: 2\r\nContent-Length: 3\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n",
        "Transfer-Encoding: chunked\r\n",
    ):
        answer = served.raw((start + lines + "\r\n{}" + hidden).encode())
        assert answer.startswith(b"HTTP/1.1 411")
        assert b"CLT.put" not in answer
    # what follows a question that is refused is not taken for the next one
    answer = served.raw((start + "Content-Length: 70000\r\n\r\n" + hidden).encode())
    assert answer.startswith(b"HTTP/1.1 413")
    assert answer.count(b"HTTP/1.1") == 1


def test_rubbish_ends_the_connection_and_not_the_server(served: Served) -> None:
    for text in (
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        os.urandom(200) + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 500 + b"\r\n",
        b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n",
    ):
        answer = served.raw(text)
        assert served.server.guard.token.encode() not in answer
    assert served.get("/")[0] == 200


def test_only_this_machine_is_listened_to(served: Served) -> None:
    assert served.server.server_address[0] == "127.0.0.1"
    others = {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {
        "127.0.0.1"
    }
    for address in others | {"127.0.0.2"}:
        with (
            pytest.raises((ConnectionRefusedError, TimeoutError)),
            socket.create_connection((address, served.port), timeout=2),
        ):
            pass


def test_words_of_a_path() -> None:
    assert words_of("/a/b%20c.js?x=/../#y") == ["a", "b c.js"]
    for target in ("", "a", "//a", "/a%0ab", "/a%7f", "/%ff"):
        with pytest.raises(Refused) as refused:
            words_of(target)
        assert refused.value.status == 400
    for target in ("/a//b", "/./a", "/a/..", "/..", "/.a", "/a/.b/c"):
        with pytest.raises(Refused) as refused:
            words_of(target)
        assert refused.value.status == 404


def test_a_root_that_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.js").write_text("1")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert find_file(tmp_path / "link", "/a.js").read_text() == "1"
    with pytest.raises(Refused):
        find_file(tmp_path / "gone", "/a.js")


def test_each_start_has_a_secret_of_its_own() -> None:
    assert Guard(1).token != Guard(1).token
    assert "token" not in repr(Guard(1))
