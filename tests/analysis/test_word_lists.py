"""Words that a user lists to name features by."""

from __future__ import annotations

from pathlib import Path

import pytest

from clt_lightning.analysis.names import read_words
from clt_lightning.core.errors import UserError


def test_a_list_of_words(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes("\ufeffcat\r\n\r\nlöwe\r\ncat\r\n".encode())
    assert read_words(str(path)) == ["cat", "löwe"]
    path.write_bytes(b"cat\nl\xf6we\n")
    with pytest.raises(UserError, match=r"words\.txt, line 2: byte 0xf6"):
        read_words(str(path))
    path.write_text("\n\n")
    with pytest.raises(UserError, match=r"words\.txt' holds no word"):
        read_words(str(path))
    with pytest.raises(UserError, match=r"nope\.txt cannot be read"):
        read_words(str(tmp_path / "nope.txt"))
    assert len(read_words(None)) > 100
