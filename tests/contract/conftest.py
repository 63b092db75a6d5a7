"""Lets pytest explain the assertions of the shared checks as it explains those of tests."""

import pytest

pytest.register_assert_rewrite("tests.contract.contract_checks")
