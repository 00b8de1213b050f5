"""Pre-training of the demo's backbone."""

import os
import signal
from dataclasses import replace

import pytest
import torch

from model.configs import demo
from model.network.deformable_detr import DeformableDetr
from model.training.interrupt import Interrupted, StopRequest
from model.training.pretrain import pretrain_backbone

STEPS = 3


def pretrained(num_workers: int) -> dict[str, torch.Tensor]:
    config = replace(demo(), pretrain_steps=STEPS, num_workers=num_workers)
    torch.manual_seed(config.seed)
    detector = DeformableDetr(config.model)
    with StopRequest() as stop:
        pretrain_backbone(detector, config, stop=stop)
    return detector.state_dict()


def test_pre_training_changes_the_backbone_alone() -> None:
    torch.manual_seed(demo().seed)
    before = DeformableDetr(demo().model).state_dict()

    after = pretrained(num_workers=0)

    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert {name.split(".")[0] for name in changed} == {"backbone"}
    assert len(changed) == sum(name.startswith("backbone.") for name in before)


def test_pre_training_comes_to_the_same_weights_with_workers() -> None:
    alone, helped = pretrained(num_workers=0), pretrained(num_workers=1)

    assert all(torch.equal(alone[name], helped[name]) for name in alone)


def test_pre_training_stops_on_request() -> None:
    config = replace(demo(), pretrain_steps=1000, num_workers=0)
    detector = DeformableDetr(config.model)

    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            pretrain_backbone(detector, config, stop=stop)
