"""The sentences that a user's mistakes are answered with, word for word; other tests look for the key and the rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from semisup.errors import SemisupError
from semisup.pipeline.plan import load_checked

RECIPE = """
name: a/b
seed: -1
sead: 3
device: cuda:77
precision: bf61
threads: 0
data: {source: npz, path: /nowhere/x.npz, labels: ten, size: 600}
model: {name: cnnn}
tracking: {mlflow: "yes"}
stages:
  one:
    method: {name: fixmatch, treshold: 0.5, unlabeled_weight: .inf, align: 1}
    model: {name: wrn, depth: 1000000}
    steps: many
    lr: 0.1
    optimizer: {lr: 0, momentum: 1.0, betas: [0.9], group_lr: {main: -1}}
    schedule: {name: cosin}
    augment: {strong: {policy: randaugment, cutout: 2, ranges: codes}, weak: {policy: weakk}}
  two: {method: {name: fixmach}, init: three, steps: 3, epochs: 2}
  pure: {method: supervised, steps: 2, batch: null}
  first: {method: {name: multi_task, tasks: {rotatoin: 1}}, init: {weights: no.safetensors}, steps: 100000000000}
"""
ANSWERS = """
name: must be 1 to 100 letters, digits and . _ -, not 'a/b'
seed: must be at least 0, not -1
sead: unknown key; did you mean 'seed'?
device: 'cuda:77' is not on this machine (0 CUDA devices found)
precision: must be one of auto, fp32, bf16, fp16, not 'bf61'; did you mean 'bf16'?
threads: must be at least 1, not 0
data.path: /nowhere/x.npz does not exist
data.labels: must be 'all', a number of images (40), images per class ('4/class' or '4 per class') or a percentage \
('10%'), not 'ten'
data.size: must be at most 518, not 600
model.name: unknown model 'cnnn'; did you mean 'cnn'?
tracking.mlflow: must be true or false, not 'yes'
stages.one.method.treshold: unknown key; did you mean 'threshold'?
stages.one.method.unlabeled_weight: must be a finite number, not inf
stages.one.method.align: must be true or false, not 1
stages.one.model.depth: must be at most 1000, not 1000000
stages.one.steps: must be a whole number, not 'many'
stages.one.lr: unknown key; did you mean 'optimizer.lr'?
stages.one.optimizer.lr: must be greater than 0, not 0
stages.one.optimizer.momentum: must be less than 1, not 1.0
stages.one.optimizer.betas: must have at least 2, not 1
stages.one.optimizer.group_lr.main: must be greater than 0, not -1
stages.one.schedule.name: must be one of cosine, cosine_7_16, constant, not 'cosin'; did you mean 'cosine'?
stages.one.augment.strong.cutout: must be at most 1, not 2
stages.one.augment.strong.ranges: must be one of code, paper, not 'codes'; did you mean 'code'?
stages.one.augment.weak.policy: unknown policy 'weakk'; did you mean 'weak'?
stages.two.method.name: unknown method 'fixmach'; did you mean 'fixmatch'?
stages.two.init.from: no stage 'three'; valid: one
stages.two: give steps or epochs, not both
stages.pure.method: must be a mapping, such as {name: ...}, not 'supervised'
stages.pure.batch: must be a mapping, not null
stages.first.method.tasks.rotatoin: must be one of rotation, jigsaw, context_prediction, counting, aet, not \
'rotatoin'; did you mean 'rotation'?
stages.first.init.weights no.safetensors: no such file
stages.first.steps: must be at most 1000000000, not 100000000000
"""


AGAINST_DATA = """
name: a
seed: -1
data: {source: digits, labels: 5000}
model: {name: resnet18, width: 0.25, stem: cifar}
stages:
  pretrain:
    method: {name: simclr_v2, hidden: 8, temprature: 0.5}
    augment: {first: {policy: simclr, strength: -1}, week: {policy: weak}}
    optimizer: {lr: 0, group_lr: {teacher: 0.1}}
    steps: 1
  tuned:
    init: {from: pretrain, head_layer: 9}
    method: {name: supervised}
    steps: 1
  kept: {init: {from: pretrain, head_layer: 1}, method: {name: supervised}, steps: 1}
  probe: {kind: probe, of: kept, grid: 3}
  spread: {kind: propagate, teacher: pretrain, mirror: true, balance: [0.5, 0.5]}
  labels: {kind: relabel, teacher: pretrain}
  own:
    init: nosuch
    method: {name: fixmatch}
    augment:
      weak: {albumentations: [{name: RandomCrop, height: 3, width: 3}]}
      strong: {policy: ctaugment}
    optimizer: {group_lr: {head: 0.1}}
"""
ANSWERS_AGAINST_DATA = """
seed: must be at least 0, not -1
data.labels: 5000 needs 5000 labeled images, but there are only 1438
stages.pretrain.method.temprature: unknown key; did you mean 'temperature'?
stages.pretrain.augment.first.strength: must be at least 0, not -1
stages.pretrain.augment.week: method 'simclr_v2' asks for no such view; valid: backend, first, second
stages.pretrain.optimizer.lr: must be greater than 0, not 0
stages.pretrain.optimizer.group_lr: the method has no parameter group 'teacher'; valid: main
stages.tuned.init.head_layer: the projection head of 'pretrain' has 3 layers, got 9
stages.probe.grid: the network of 'kept' keeps layers of a projection head, which take one mean; leave it at 1
stages.spread.mirror: a mirrored image of 'digits' may be of another class; leave it false, or say that it keeps its \
class with data.flip=true
stages.spread.balance: must be 10 numbers, one for each class, not [0.5, 0.5]
stages.labels.teacher: 'pretrain' trains an encoder and cannot predict; fine-tune it first
stages.own.init.from: no stage 'nosuch'; valid: kept, pretrain, tuned
stages.own: needs its length, steps or epochs
stages.own.augment.weak.albumentations[0]: RandomCrop: must keep height, width and channels (8, 8, 1), makes (3, 3, 1)
stages.own.augment.strong.policy: method 'fixmatch' learns no rates to draw by as it is set here; remixmatch and \
fixmatch do with `ctaugment: true`; got 'ctaugment'
stages.own.optimizer.group_lr: the method has no parameter group 'head'; valid: main
"""


@pytest.mark.parametrize(("recipe", "answers"), [(RECIPE, ANSWERS), (AGAINST_DATA, ANSWERS_AGAINST_DATA)])
def test_one_mistake_of_each_kind_is_named_in_one_message(recipe: str, answers: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(recipe)
    with pytest.raises(SemisupError) as caught:
        load_checked(path)
    first, *lines = str(caught.value).splitlines()
    wanted = answers.strip().splitlines()
    assert sorted(line.removeprefix("  - ") for line in lines) == sorted(wanted)
    assert first == f"{path}: {len(wanted)} problems"
