"""What every sampler, early-stopping rule, sink, data source and results store keeps to: see README.md here."""

import pytest

for _name in ("early_stopping", "samplers", "sinks", "sources", "stores"):
    pytest.register_assert_rewrite(f"{__name__}.{_name}")  # else a failed assert of a contract shows no values
