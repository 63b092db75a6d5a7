"""Every entry of METHODS through one suite."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from semisup.methods import METHODS, Method
from semisup.models import EMA
from tests.contract import contract_checks as checks
from tests.contract.contract_settings import CASES, SETTINGS, Case, cases

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
FIRST = {f"{method}-{next(iter(variants))}" for method, variants in SETTINGS.items()}
every_method = pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=name, marks=() if name in FIRST else pytest.mark.slow) for name, case in CASES.items()],
)
"""For what the variants of a method have in common; the further ones are slow."""


class Unheard(Method):
    """A method that nobody wrote settings for."""


def test_every_method_has_settings() -> None:
    assert SETTINGS.keys() == METHODS.keys()


def test_a_method_without_settings_fails_collection() -> None:
    with pytest.raises(LookupError, match="unheard"):
        cases({**METHODS, "unheard": Unheard})


def test_settings_without_a_method_fail_collection() -> None:
    with pytest.raises(LookupError, match="distill"):
        cases({name: cls for name, cls in METHODS.items() if name != "distill"})


@every_case
def test_says_whether_its_predictor_is_an_average(case: Case) -> None:
    method = case.build()
    averages = [module.module for module in method.modules() if isinstance(module, EMA)]
    assert method.averages == any(average is method.predictor() for average in averages)


@every_case
def test_every_view_matters(case: Case) -> None:
    checks.check_views_matter(case)


@every_case
def test_groups_move_and_the_rest_is_frozen(case: Case) -> None:
    checks.check_groups_move(case)


@every_case
def test_gradients_reach_their_group_only(case: Case) -> None:
    checks.check_gradient_paths(case)


@every_method
def test_an_image_twice_in_a_batch_is_remembered_once(case: Case) -> None:
    checks.check_writes_once(case)


@every_case
def test_logged_terms(case: Case) -> None:
    checks.check_logged_terms(case)


@every_method
def test_logged_terms_under_bf16_autocast(case: Case) -> None:
    checks.check_logged_terms(case, precision=torch.bfloat16)


@every_case
def test_runs_on_meta(case: Case) -> None:
    checks.check_runs_on_meta(case)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_logged_terms_on_cuda() -> None:
    for case in CASES.values():
        checks.check_logged_terms(case, device="cuda")


@every_method
def test_generator_protocol(case: Case) -> None:
    checks.check_generator_protocol(case)


@every_case
def test_pseudo_labels(case: Case) -> None:
    checks.check_pseudo_labels(case)


@every_method
def test_embeddings(case: Case) -> None:
    checks.check_embeddings(case)


@every_method
def test_predictor_learns(case: Case) -> None:
    checks.check_predictor_learns(case)


@every_case
def test_resume_is_bit_exact(case: Case, tmp_path: Path) -> None:
    checks.check_resumes(case, tmp_path)


@pytest.mark.parametrize("name", [name for name in CASES if name.endswith("-ctaugment")])
def test_probe_moves_rates_alone(name: str) -> None:
    checks.check_probe_moves_rates_alone(CASES[name])


@every_method
def test_seeds(case: Case) -> None:
    checks.check_seeds(case)


def test_frozen_encoder_keeps_weights_and_statistics() -> None:
    checks.check_frozen_stays(CASES["supervised-frozen"], lambda method: method.get_submodule("model.backbone"))


@pytest.mark.parametrize("variant", SETTINGS["distill"])
def test_distillation_teacher_keeps_weights_and_statistics(variant: str) -> None:
    checks.check_frozen_stays(CASES[f"distill-{variant}"], lambda method: method.get_submodule("teacher"))


def test_no_hidden_labels() -> None:
    checks.check_no_hidden_labels()
