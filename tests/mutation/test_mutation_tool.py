"""The tool that judges the tests: what it changes, and whether it tells a test that notices from one that does not."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path

import pytest

from tests.mutation.__main__ import ROOT, TESTS, Place, Runner, places
from tests.mutation.operators import mutations


def changed(source: str) -> set[str]:
    """What the one line of a function becomes."""
    return {m.after for m in mutations(source)}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a < b", {"(a <= b)", "(a >= b)"}),
        ("a == b", {"(a != b)"}),
        ("x - y * z", {"(x + y * z)", "x - (y / z)"}),
        ("f(x).sum(1)", {"f(x).mean(1)", "f(x).sum(0)"}),
        ("x.max(dim=0)", {"x.min(dim=0)", "x.max()", "x.max(dim=1)"}),
        ("y.detach()", {"y"}),
        ("torch.sqrt(x)", {"x"}),
        ("not a", {"a"}),
        ("~mask & other", {"mask & other", "(~mask | other)"}),
        ("a and b", {"(a or b)"}),
        ("x[1:n]", {"x[:n]", "x[1:]", "x[2:n]"}),
        ("p if c else q", {"p", "q"}),
        ("g(a, keep=True)", {"g(a)", "g(a, keep=False)"}),
        ("g(device=d)", set()),
        ("f'{a + 1}'", set()),
    ],
)
def test_every_kind_of_change(line: str, expected: set[str]) -> None:
    assert changed(f"def f():\n    return {line}\n") == {f"return {text}" for text in expected}


def test_statements_that_change_something_in_place_are_dropped() -> None:
    source = """
    class C:
        size: int = 3

        def f(self, x, n=2):
            '''1 + 1'''
            x[0] = y
            self.total += y
            x.mul_(2)
            if ready: x.add_(y)
            raise E(1 + 1)
    """
    found = [m for m in mutations(textwrap.dedent(source)) if m.text == "pass"]
    assert [m.before for m in found] == ["x[0] = y", "self.total += y", "x.mul_(2)", "if ready: x.add_(y)"]
    assert all("1 + 1" not in m.before and "n=2" not in m.before for m in mutations(textwrap.dedent(source)))


def test_conditions_are_turned_around() -> None:
    assert changed("if a:\n    b\n") == {"if (not a):"}
    assert changed("c = [x for x in y if x.ok()]\n") == {"c = [x for x in y if (not x.ok())]"}


def test_the_map_names_files_and_tests_that_exist() -> None:
    named = {path for file, tests in TESTS.items() for path in (file, *tests) if not path.startswith("-")}
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("file", sorted(TESTS)[::7])
def test_mutations_of_the_package_are_python(file: str) -> None:
    source = (ROOT / file).read_text(encoding="utf-8")
    plain, found = ast.dump(ast.parse(source)), mutations(source)
    assert found
    for mutation in found[:: max(1, len(found) // 20)]:
        assert ast.dump(ast.parse(mutation.apply(source))) != plain


def test_a_survivor_is_told_from_a_mutation_that_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "area.py").write_text("def area(a, b):\n    return a * b\n\n\ndef edge(a):\n    return -a\n")
    (tmp_path / "test_area.py").write_text("from area import area\n\n\ndef test_area():\n    assert area(3, 2) == 6\n")
    monkeypatch.setattr("tests.mutation.__main__.ROOT", tmp_path)
    monkeypatch.setattr("tests.mutation.__main__.PRELOADED", ())
    monkeypatch.setitem(TESTS, "area.py", ["test_area.py"])
    runner = Runner(tmp_path)
    outcomes = {p.mutation.after: runner.judge(p) for p in places(["area.py"])}
    assert outcomes == {"return (a / b)": "killed", "return a": "survived"}
    assert "a * b" in (tmp_path / "area.py").read_text()
    endless = Place("area.py", mutations("x = 1\n")[0])
    (tmp_path / "test_area.py").write_text("def test_area():\n    while True:\n        pass\n")
    monkeypatch.setattr(runner, "limit", lambda tests: 1.5)
    assert runner.judge(endless) == "timeout"
