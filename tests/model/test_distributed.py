"""Any number of processes train the same weights."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bundle.preprocess import Preprocess
from model.config import AugmentConfig, LossConfig, TrainConfig, Variant
from model.configs import tiny
from model.data.loading import RunData, epoch_batches, open_data
from model.distributed import PeerFailed, num_processes, process_index, sum_in_place
from model.evaluation.evaluation import evaluate
from model.network.backbone import BatchNorm2d
from model.network.deformable_detr import DeformableDetr
from model.network.inference import DetectionModel
from model.training.non_finite import NonFiniteLoss
from model.training.training_state import TrainingState
from model.training.validation_loss import ValidationLoss
from tests.model.processes import run_together
from tests.model.runs import assert_equal, write_images
from tests.model.training.test_optimiser_step import step_once

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="forks, and one GPU for many")


def case(variant: str, classification: Any = "focal", **model: Any) -> TrainConfig:
    return replace(
        tiny(),
        model=replace(tiny().model, variant=Variant(variant), dropout=0.0, **model),
        loss=LossConfig(classification=classification, encoder_matches=2),
        preprocess=Preprocess(short_side=48, long_side=96),
        augment=AugmentConfig(
            short_sides=(40, 48),
            long_side=80,
            crop_short_sides=(48,),
            crop_long_side=96,
            crop_min=32,
            crop_max=40,
        ),
        batch_size=8,
        ema_decay=0.9,
        num_threads=1,
    )


CASES = {
    "base": case("base", "varifocal", train_batch_norm=True, frozen_stages=-1),
    "refine": case("refine"),
    "two_stage": case("two_stage", "varifocal"),
    "recipes": case("two_stage", denoising_queries=12, one_to_many_queries=8),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    """17 images, so that the last of three steps has one; three images have no boxes."""
    directory = write_images(tmp_path_factory.mktemp("many"), num_train=17, num_val=5)
    path = directory / "train.json"
    content = json.loads(path.read_text())
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] not in (2, 9, 17)]
    path.write_text(json.dumps(content))
    return open_data(CASES["refine"], directory)


def start_model(config: TrainConfig) -> DeformableDetr:
    torch.manual_seed(0)
    return DeformableDetr(config.model).train()


def train_epoch(config: TrainConfig, data: RunData) -> dict[str, Any]:
    """The values of every step of an epoch, and the weights after it.

    With SGD, since AdamW turns the rounding of a gradient of zero into a whole step.
    """
    state = TrainingState.start(start_model(config), config)
    trained = [p for p in state.model.parameters() if p.requires_grad]
    state.optimizer = torch.optim.SGD(trained, lr=1.0, fused=True)
    steps = epoch_batches(data.train, config, epoch=0)
    values = [step_once(state, step, config) for step in steps]
    assert state.average is not None
    return {
        "values": values,
        "weights": flatten(state.model),
        "average": flatten(state.average.model),
    }


def flatten(model: nn.Module) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in model.state_dict().values()])


def evaluate_model(data: RunData) -> tuple[tuple[Any, Any, Any], float]:
    """What an evaluation found, and the validation loss of the same forward passes."""
    config = CASES["refine"]
    model = DetectionModel(start_model(config), config.preprocess)
    loss = ValidationLoss(model, config, ground_truth=data.val.ground_truth(), classes=data.classes)
    metrics = evaluate(
        loss.predict, data.val, preprocess=config.preprocess, classes=data.classes, batch_size=2,
        follow=loss.add,
    )  # fmt: skip
    return (metrics.defined, metrics.results, metrics.thresholds), loss.total()


def normalise_batch(part: slice) -> dict[str, torch.Tensor]:
    """Images of a batch of five after batch norm, and what they leave behind."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, 4, 6, generator=generator) * 3 + 1
    weights = torch.randn(5, 3, 4, 6, generator=generator)
    padding = torch.zeros(5, 4, 6, dtype=torch.bool)
    padding[0, 3:] = padding[2:4, :, 4:] = True
    norm = BatchNorm2d(3, trained=True).train()
    own = x[part].clone().requires_grad_()
    y = norm(own, padding[part])
    (y * weights[part]).sum().backward()
    assert own.grad is not None
    assert norm.weight.grad is not None
    gradient = norm.weight.grad.clone()
    sum_in_place(gradient)
    return {"y": y.detach(), "x": own.grad, "weight": gradient,
            "mean": norm.running_mean, "variance": norm.running_var}  # fmt: skip


PARTS = {2: [slice(0, 3), slice(3, 5)], 4: [slice(0, 2), slice(2, 2), slice(2, 3), slice(3, 5)]}


def work(data: RunData, out: Path) -> None:
    results = {name: train_epoch(config, data) for name, config in CASES.items()}
    evaluation = evaluate_model(data)
    norm = normalise_batch(PARTS[num_processes()][process_index()])
    torch.save((results, evaluation, norm), out / f"{process_index()}.pt")


@pytest.fixture(scope="module", params=[2, 4])
def together(request: pytest.FixtureRequest, data: RunData, tmp_path_factory: Any) -> list[Any]:
    """What every process of two or four has computed: epochs, evaluation, batch norm."""
    out = tmp_path_factory.mktemp("together")
    run_together(request.param, work, data, out)
    return [torch.load(out / f"{i}.pt", weights_only=False) for i in range(request.param)]


@pytest.fixture(scope="module")
def one_process(data: RunData) -> dict[str, dict[str, Any]]:
    return {name: train_epoch(config, data) for name, config in CASES.items()}


def assert_same_training(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert len(found["values"]) == len(expected["values"]) == 3
    for values, expected_values in zip(found["values"], expected["values"], strict=True):
        assert values == pytest.approx(expected_values, rel=5e-5, abs=1e-6)
    for name in ("weights", "average"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("name", CASES)
def test_processes_train_what_one_does(
    name: str, together: list[Any], one_process: dict[str, Any]
) -> None:
    results, _, _ = together[0]

    assert_same_training(results[name], one_process[name])


@pytest.mark.parametrize("name", ["refine", "two_stage"])  # not with trained batch norm
def test_accumulation_trains_what_one_batch_does(
    name: str, data: RunData, one_process: dict[str, Any]
) -> None:
    config = replace(CASES[name], batch_size=2, accumulation_steps=4)

    found = train_epoch(config, data)

    assert_same_training(found, one_process[name])


def test_all_processes_have_the_same_weights_to_the_bit(together: list[Any]) -> None:
    results = [results for results, _, _ in together]

    for other in results[1:]:
        assert_equal(other, results[0])


def test_several_processes_find_the_same_metrics_to_the_bit_and_the_loss_to_rounding(
    together: list[Any], data: RunData
) -> None:
    expected, loss = evaluate_model(data)

    found = [evaluation for _, evaluation, _ in together]
    assert [metrics for metrics, _ in found] == [expected] * len(together)
    assert [one for _, one in found] == pytest.approx([loss] * len(together), rel=1e-6)


class _NoGradient(torch.autograd.Function):
    """Passes a tensor on, and NaN back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0] * math.nan


def step_with_a_bad_gradient(data: RunData, out: Path) -> None:
    """A step of one image, which one of the processes has."""
    config = CASES["refine"]
    state = TrainingState.start(start_model(config), config)
    state.model.encoder.register_forward_hook(lambda *call: _NoGradient.apply(call[-1]))
    *_, last = epoch_batches(data.train, config, epoch=0)
    try:
        step_once(state, last, config)
    except (NonFiniteLoss, PeerFailed) as error:
        (out / f"{process_index()}.txt").write_text(f"{type(error).__name__}: {error}")


def test_a_bad_gradient_is_told_though_a_process_has_no_image(
    data: RunData, tmp_path: Path
) -> None:
    run_together(2, step_with_a_bad_gradient, data, tmp_path)

    main, other = ((tmp_path / f"{process}.txt").read_text() for process in (0, 1))
    assert main.startswith("NonFiniteLoss: step 1 (epoch 1): gradient is not finite; image ids [")
    assert "first bad tensor: gradient of encoder." in main
    assert other.startswith("PeerFailed: ")


def test_batch_norm_has_the_statistics_of_all_processes(together: list[Any]) -> None:
    expected = normalise_batch(slice(0, 5))

    found = [norm for _, _, norm in together]
    for name in ("y", "x"):
        torch.testing.assert_close(torch.cat([norm[name] for norm in found]), expected[name])
    for name in ("weight", "mean", "variance"):
        torch.testing.assert_close(found[-1][name], expected[name])
