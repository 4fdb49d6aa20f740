"""Tables that fit the terminal."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from clt_lightning.callbacks.table import reconstruction_lines, zero_shot_lines
from clt_lightning.core.table import Column, lay_out
from tests.callbacks.test_table import numbers

LABELS = Column("layer", ["00", "01", "mean"])
WIDE = [Column(f"t{i}", [f"{i}.{row}" for row in range(3)], 12, group="left" if i < 3 else "right") for i in range(6)]


def test_a_table_that_fits_has_room() -> None:
    assert lay_out(LABELS, WIDE[:2], 40) == [
        "      -------- left --------",
        "layer          t0          t1",
        "   00         0.0         1.0",
        "   01         0.1         1.1",
        " mean         0.2         1.2",
    ]


def test_first_it_is_set_tightly_then_cut_between_groups_then_within_them() -> None:
    assert lay_out(LABELS, WIDE, 40)[1:3] == ["layer  t0  t1  t2  t3  t4  t5", "   00 0.0 1.0 2.0 3.0 4.0 5.0"]
    cut = lay_out(LABELS, WIDE, 28)
    assert [line for line in cut if line.startswith("layer")] == [f"layer          t{i}" for i in range(6)]
    assert cut.count("") == 5
    wide = [Column(c.title, ["x" * 9] * 3, 12, c.group) for c in WIDE]
    cut = lay_out(LABELS, wide, 42)
    assert [line.split()[1:] for line in cut if line.startswith("layer")] == [["t0", "t1", "t2"], ["t3", "t4", "t5"]]


def test_long_labels_are_shortened() -> None:
    labels = Column("class", ["a very long name of a class", "short"], left=True)
    columns = [Column("before", ["1.00%", "2.00%"]), Column("after", ["3.00%", "4.00%"])]
    assert lay_out(labels, columns, 36) == [
        "class                   before after",
        "a very long name of a..  1.00% 3.00%",
        "short                    2.00% 4.00%",
    ]
    assert lay_out(labels, columns, 20) == [
        "class      before",
        "a very l..  1.00%",
        "short       2.00%",
        "",
        "class      after",
        "a very l.. 3.00%",
        "short      4.00%",
    ]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(0, 14), st.sampled_from("abc")), min_size=1, max_size=9),
    st.integers(1, 30),
    st.integers(22, 120),
)
def test_no_line_is_too_long_and_no_cell_is_lost(shapes: list[tuple[int, int, str]], label: int, width: int) -> None:
    columns = [
        Column(f"{i}" * 2, [f"{i}{'x' * size}", f"{i}{'y' * size}"], least, group)
        for i, (size, least, group) in enumerate(sorted(shapes, key=lambda shape: shape[2]))
    ]
    lines = lay_out(Column("name", ["n" * label, "m"]), columns, width)
    assert max(map(len, lines)) <= width
    text = " ".join(lines).split()
    for column in columns:
        for cell in column.cells:
            assert text.count(cell) == sum(cell in other.cells for other in columns)


def test_the_tables_of_a_validation_at_every_width() -> None:
    metrics = numbers(24)
    for tag in list(metrics):
        if tag.startswith("fvu/cls"):
            metrics[tag] = 1e12
    metrics |= {"zero_shot/original": 0.9, "zero_shot/replaced/10-23/patch": 0.8, "zero_shot/kl/10-23/patch": 123.4567}
    for width in range(36, 160):
        lines = reconstruction_lines(metrics, width) + zero_shot_lines(metrics, width)
        assert max(map(len, lines)) <= width, width
        assert sum(line.count("layer") for line in lines if line.startswith("layer ")) in (1, 2, 3)


def test_a_long_name_over_columns_goes_over_several_lines() -> None:
    labels = Column("arm", ["edges", "random"], 30, left=True)
    names = ("logit less mean, linear axis", "probability, log axis")
    columns = [Column(mode, ["0.834", "0.5"], 20, name) for name in names for mode in ("insertion", "deletion")]
    for width in (40, 72, None):
        lines = lay_out(labels, columns, width)
        over = [line for line in lines if line.startswith(" ")]
        heads = " ".join(word for line in over for word in line.replace("-", " ").split())
        assert set(heads.split()) == {word for name in names for word in name.split()}
        assert width is not None or heads == " ".join(names)
        assert width is None or max(map(len, lines)) <= width
    # beside a name of one line, each stands just over its columns
    *over, titles, _, _ = lay_out(labels, [Column("a", ["1", "2"], 12, names[0]), columns[-1]])
    assert len(over) > 2
    assert [("probability" in line, "logit" in line) for line in over[:2]] == [(False, True), (False, False)]
    assert "axis" in over[-1][titles.index("a") + 1 :]
