"""FeatureParallel passes arguments on, and none into the void."""

from __future__ import annotations

import pytest

from clt_lightning.core.errors import UserError
from clt_lightning.parallel.strategy import FeatureParallel


def test_arguments_of_ddp_are_taken_and_others_refused() -> None:
    made = FeatureParallel(2, find_unused_parameters=True, bucket_cap_mb=5, start_method="popen")
    assert made._ddp_kwargs == {
        "find_unused_parameters": True,
        "bucket_cap_mb": 5,
        "gradient_as_bucket_view": True,
        "broadcast_buffers": False,
    }
    with pytest.raises(UserError, match="takes no find_unused_params: "):
        FeatureParallel(2, find_unused_params=True)
