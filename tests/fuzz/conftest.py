"""Two profiles of every property: a short one, the same in every run, and a long one behind the ``slow`` mark."""

from hypothesis import HealthCheck, settings

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

settings.register_profile(
    "quick", derandomize=True, max_examples=25, deadline=None, database=None, suppress_health_check=QUIET
)
settings.register_profile(
    "thorough", derandomize=True, max_examples=400, deadline=None, database=None, suppress_health_check=QUIET
)
