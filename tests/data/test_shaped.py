"""Unequal classes and foreign images, made of data that have neither."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from semisup.data import load_data
from semisup.data.shaped import held_out
from semisup.data.sources import check_source
from semisup.errors import SemisupError
from semisup.settings import DataConfig


def test_a_long_tail() -> None:
    data = load_data(DataConfig(source="digits", long_tail=50))
    counts = np.bincount(data.y_train)
    assert counts[0] / counts[9] == pytest.approx(50, rel=0.25) and (np.diff(counts) < 0).all()
    assert len(data.x_test) == 359 and len(data.x_train) == counts.sum()
    again, whole = load_data(DataConfig(source="digits", long_tail=50)), load_data(DataConfig(source="digits"))
    assert again.hash == data.hash != whole.hash


def test_foreign_images_have_no_label_and_no_test() -> None:
    whole, data = load_data(DataConfig(source="digits")), load_data(DataConfig(source="digits", foreign=3))
    assert data.classes == list("0123456") and set(data.y_test) == set(range(7))
    assert np.array_equal(data.y_train, np.where(whole.y_train < 7, whole.y_train, -1))
    assert np.array_equal(data.x_train, whole.x_train)


def test_two_classes_are_left(tmp_path: Path) -> None:
    with pytest.raises(SemisupError, match=r"data\.foreign: must leave two classes of 10, not 1"):
        load_data(DataConfig(source="digits", foreign=9))
    with pytest.raises(SemisupError, match=r"data\.foreign: not for source folder"):
        check_source(DataConfig(source="folder", path=str(tmp_path), foreign=2, size=8))


def test_labels_become_the_test_where_there_is_none() -> None:
    data = load_data(DataConfig())
    assert held_out(data, 0.3) is data
    y_train = np.where(data.y_train < 3, data.y_train, -1)
    without = replace(data, x_test=data.x_test[:0], y_test=data.y_test[:0], y_train=y_train)
    first = np.flatnonzero(without.y_train == 1)
    without.y_train[first[1:]] = -1
    found = held_out(without, 0.3)
    there, left = (np.bincount(y[y >= 0], minlength=10) for y in (without.y_train, found.y_train))
    tested = np.bincount(found.y_test, minlength=10)
    assert (left + tested == there).all() and len(found.x_train) == len(data.x_train)
    assert tested[1] == 0 and tested[0] == round(0.3 * there[0]) and tested[3:].sum() == 0
    assert found.hash != without.hash and found.hash == held_out(without, 0.3).hash
    assert "there are no test images" in found.notes[-1]


def test_the_parts_test_every_image() -> None:
    data = load_data(DataConfig())
    without = replace(data, x_test=data.x_test[:0], y_test=data.y_test[:0])
    parts = [held_out(without, 0.33, fold) for fold in range(DataConfig(holdout=0.33).folds)]
    rows = [set(np.flatnonzero(part.y_train < 0)) for part in parts]
    assert len(parts) == 3 and len({part.hash for part in parts}) == 3
    assert len(set.union(*rows)) > 0.98 * len(data.x_train)
    assert np.ptp([np.bincount(part.y_test) for part in parts], axis=0).max() <= 1, "about as many of each class"
    for part, own in zip(parts, rows, strict=True):
        assert np.array_equal(part.y_test, data.y_train[sorted(own)])
    few = replace(without, y_train=np.where(np.arange(len(data.y_train)) < 80, without.y_train, -1))
    counts = np.bincount(few.y_train[few.y_train >= 0], minlength=10)
    assert counts.min() > 1
    tested = [held_out(few, 0.33, fold) for fold in range(3)]
    assert all(np.bincount(part.y_test, minlength=10).min() >= 1 for part in tested)
    assert set.union(*(set(np.flatnonzero(part.y_train < 0)) for part in tested)) == set(range(len(data.y_train)))


def test_there_is_no_part_beyond_the_last(tmp_path: Path) -> None:
    with pytest.raises(SemisupError, match=r"data\.fold: data\.holdout makes 3 of them, from 0: there is no 3"):
        load_data(DataConfig(holdout=0.33, fold=3))
    with pytest.raises(SemisupError, match=r"data\.fold: "):
        load_data(DataConfig(fold=1))
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8), np.uint8)
    np.savez(tmp_path / "x.npz", x_train=images, y_train=np.arange(12) % 2)
    config = DataConfig(source="npz", path=str(tmp_path / "x.npz"), holdout=0.5, fold=1)
    found, scaled = load_data(config), load_data(config.model_copy(update={"size": 16}))
    assert len(found.x_test) == len(scaled.x_test) == 6 and scaled.x_test.shape[1] == 16


def test_an_image_whose_copy_keeps_its_label_is_not_tested_and_where_none_is_that_is_said() -> None:
    data = load_data(DataConfig())
    without = replace(data, x_test=data.x_test[:0], y_test=data.y_test[:0], x_train=data.x_train.copy())
    held = np.flatnonzero(held_out(without, 0.3).y_train < 0)
    stays = np.flatnonzero(held_out(without, 0.3).y_train == without.y_train[held[0]])[0]
    without.x_train[stays] = without.x_train[held[0]]
    found = held_out(without, 0.3)
    assert np.flatnonzero(found.y_train < 0).tolist() == held[1:].tolist()
    alone = replace(without, y_train=np.where(np.isin(np.arange(len(data.x_train)), held[:1]), without.y_train, -1))
    assert not len(held_out(alone, 0.3).x_test) and "nothing is tested" in held_out(alone, 0.3).notes[-1]
