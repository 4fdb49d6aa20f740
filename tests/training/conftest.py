"""Made transcoders, as the transcoder's own tests have them."""

from tests.transcoder.conftest import make_clt

__all__ = ["make_clt"]
