# SPDX-License-Identifier: Apache-2.0
"""Handlers within a training: what they count, and that the training does not notice them."""

from __future__ import annotations

import logging
import random
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from ignite.engine import Engine, Events
from made_up_images import smooth_images, write_csv, write_folder, write_image
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.handlers import CheckpointSaver, EarlyStopHandler, StatsHandler, TensorBoardStatsHandler
from monai.inferers import VQVAETransformerInferer
from monai.networks.schedulers import DDIMScheduler, RFlowScheduler
from monai.networks.utils import eval_mode
from monai.transforms import RandGaussianNoised
from small_generators import small_diffusion
from torch import Tensor, nn
from two_processes import torchrun

from monai_memorization.auditing import audit
from monai_memorization.detector.encoder import load_encoder
from monai_memorization.errors import InputError
from monai_memorization.generation.sampling import FunctionSampler, GeneratorSampler, PixelDiffusionSampler
from monai_memorization.handlers import FIRST_SEED, EncoderTrainingHandler, MemorizationHandler, WithinLimitSaver
from monai_memorization.undisturbed import networks_of

METRICS = {"n_copies", "copy_rate", "n_mem", "mem_rate", "paper_n_copies", "paper_n_mem", "tau"}
N = 40


class PlantingSampler:
    """Draws fresh images, but for a share that it takes from the training set; the share grows from check to check."""

    def __init__(self, *shares: float, n_images: int = N) -> None:
        self.training = smooth_images(40, seed=1)[:, None]
        self.shares = list(shares)
        self.n_images = n_images
        self.drawn: list[int] = []
        self.returned: list[Tensor] = []

    def __call__(self, seeds):
        images = torch.cat([self._image(seed - FIRST_SEED) for seed in seeds])
        self.drawn += seeds
        self.returned.append(images)
        return images

    def _image(self, number: int) -> Tensor:
        check = len(self.drawn) // self.n_images
        n_copies = self.shares[min(check, len(self.shares) - 1)] * self.n_images
        return self.training[number, None] if number < n_copies else smooth_images(1, seed=100 + number)[:, None]


class RestlessSampler:
    """Leaves every random state and mode it can reach changed."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def __call__(self, seeds):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        self.network.eval()
        self.network[0].train()
        with torch.no_grad():
            return self.network(smooth_images(len(seeds), seed=seeds[0])[:, None])


class Draws:
    """A handler that draws from each random generator after every step, as a training may."""

    def __init__(self) -> None:
        self.numbers: list[tuple[float, ...]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        self.numbers.append((engine.state.output[0]["loss"], torch.rand(1).item(), np.random.rand(), random.random()))


def small_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 1, 3, padding=1)
    )


def trainer(network: nn.Module, handlers, max_epochs: int = 3) -> SupervisedTrainer:
    """A training in which dropout, the order and the augmentation are random."""
    items = [{"image": image[None], "label": image[None]} for image in smooth_images(8, seed=1)]
    loader = DataLoader(Dataset(items, RandGaussianNoised("image")), batch_size=4, shuffle=True)
    return SupervisedTrainer(
        device="cpu",
        max_epochs=max_epochs,
        train_data_loader=loader,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=nn.MSELoss(),
        train_handlers=handlers,
    )


def quiet(handler: MemorizationHandler, max_epochs: int = 3) -> Engine:
    """Run an engine that does nothing but this handler."""
    engine = Engine(lambda engine, batch: None)
    handler.attach(engine)
    engine.run([0], max_epochs=max_epochs)
    return engine


@pytest.fixture(scope="module")
def validation(tmp_path_factory) -> Path:
    """Eighty validation images of forty patients."""
    folder = tmp_path_factory.mktemp("validation")
    write_folder(smooth_images(80, seed=2), folder / "images", "val")
    return write_csv(folder / "images", folder / "validation.csv", [f"v{i // 2}" for i in range(80)])


@pytest.fixture
def handler(training_folder, validation, encoder_file, tmp_path):
    """Make a handler of the small encoder that draws 40 images at every epoch."""
    given = {"output_dir": tmp_path / "watch", "encoder": encoder_file, "interval": 1, "n_images": N}
    return lambda sampler, **settings: MemorizationHandler(
        **({"training": training_folder, "validation": validation, "sampler": sampler} | given | settings)
    )


def test_counts_are_those_of_the_audit_on_the_same_images(handler, training_folder, encoder_file, validation, tmp_path):
    sampler = PlantingSampler(0.4)
    metrics = quiet(handler(sampler), max_epochs=1).state.metrics
    for number, image in enumerate(torch.cat(sampler.returned)):
        write_image(image[0], tmp_path / "drawn" / f"{number:03}.npy")
    monitored = set(pd.read_csv(tmp_path / "watch" / "monitoring.csv")["image_id"])
    listed = pd.read_csv(validation)
    listed["image"] = [str(validation.parent / name) for name in listed["image"]]
    listed[[Path(name).relative_to(validation.parent).as_posix() in monitored for name in listed["image"]]].to_csv(
        tmp_path / "monitored.csv", index=False
    )

    report = audit(
        training_folder, tmp_path / "monitored.csv", tmp_path / "drawn", tmp_path / "out", encoder=encoder_file
    )

    calibrated, paper = report["calibrated"], report["paper_protocol"]
    expected = {key: calibrated[key] for key in ("n_copies", "copy_rate", "n_mem", "mem_rate")}
    expected |= {"paper_n_copies": paper["n_copies"], "paper_n_mem": paper["n_mem"], "tau": paper["tau"]}
    assert metrics == pytest.approx(expected, rel=1e-6)
    assert metrics["n_copies"] >= 16


def test_planted_copies_are_counted_and_fresh_images_are_not(handler):
    metrics = quiet(handler(PlantingSampler(0.5)), max_epochs=1).state.metrics
    assert metrics.keys() == METRICS
    assert metrics["n_copies"] >= 20
    assert metrics["n_mem"] >= 20
    assert 0.4 < metrics["copy_rate"] < 0.7
    assert quiet(handler(PlantingSampler(0.0)), max_epochs=1).state.metrics["copy_rate"] < 0.15


def run_with_draws(*handlers_of) -> tuple[list[tuple[float, ...]], nn.Module]:
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    network, draws = small_network(), Draws()
    trainer(network, [*(make(network) for make in handlers_of), draws]).run()
    return draws.numbers, network


def test_losses_and_all_that_is_random_are_the_same_with_and_without(handler):
    alone, network = run_with_draws()
    watched, other = run_with_draws(lambda network: handler(RestlessSampler(network)))

    assert len(alone) == 6
    assert watched == alone
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in network.state_dict().items())


def own_function(network: nn.Module) -> FunctionSampler:
    """Draws through batch normalization, which torch refuses for a single vector in training mode."""
    network.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(1), nn.Upsample((32, 32))))
    return FunctionSampler(lambda n, seed: network(torch.rand(n, 1, 32, 32)))


@pytest.mark.parametrize(
    "sampler_of", [lambda network: lambda seeds: network(smooth_images(len(seeds))[:, None]), own_function]
)
def test_sampler_in_training_mode_is_refused(handler, sampler_of):
    network = small_network()
    sampler = sampler_of(network)

    with pytest.raises(InputError, match=r"sampler: ran a network of the training in training mode.*eval_mode"):
        trainer(network, [handler(sampler)], max_epochs=1).run()


def test_own_function_in_evaluation_mode_is_fine(handler):
    network = small_network()

    def draw(n: int, seed: int) -> Tensor:
        with eval_mode(network):
            return network(torch.rand(n, 1, 32, 32))

    engine = trainer(network, [handler(FunctionSampler(draw))], max_epochs=1)
    engine.run()
    assert engine.state.metrics.keys() >= METRICS


@pytest.mark.parametrize("schedule", [RFlowScheduler(), DDIMScheduler(20)])
def test_noise_schedule_of_a_sampler_has_no_mode_to_restore(handler, schedule):
    network = small_diffusion(2, in_channels=1, out_channels=1).train()
    sampler = PixelDiffusionSampler(network, schedule, (1, 32, 32), n_steps=1)
    assert quiet(handler(sampler), max_epochs=1).state.metrics.keys() == METRICS
    assert network.training


def test_an_encoder_trained_in_between_does_not_change_the_training_either(
    handler, training_folder, tmp_path, few_steps
):
    alone, _ = run_with_draws()
    watched, _ = run_with_draws(lambda network: handler(RestlessSampler(network), encoder=None))
    trained, _ = run_with_draws(lambda _: EncoderTrainingHandler(training_folder, tmp_path / "detector"))

    assert watched == trained == alone
    for folder in ("watch", "detector"):
        assert load_encoder(tmp_path / folder / "encoder" / "model.pt").training_steps == 3


def test_kept_encoder_is_used_again(handler, tmp_path, few_steps):
    file = tmp_path / "watch" / "encoder" / "model.pt"
    for _ in range(2):
        quiet(handler(PlantingSampler(0.0), encoder=None), max_epochs=1)
        written = file.stat().st_mtime_ns
        monitored = (tmp_path / "watch" / "monitoring.csv").read_text()
    assert file.stat().st_mtime_ns == written
    assert (tmp_path / "watch" / "monitoring.csv").read_text() == monitored


def test_modes_are_as_before_even_where_parts_differ(handler):
    network = small_network()
    network.train()
    network[1].eval()  # as a frozen part would be
    quiet(handler(RestlessSampler(network)), max_epochs=1)
    assert [part.training for part in network.modules()] == [True, True, False, True, True]


def test_every_image_has_a_seed_of_its_own_whatever_the_batch_size(handler):
    seen = []
    for batch_size in (1, 7, 100):
        sampler = PlantingSampler(0.2)
        metrics = quiet(handler(sampler, batch_size=batch_size), max_epochs=1).state.metrics
        assert sampler.drawn == list(range(FIRST_SEED, FIRST_SEED + N))
        assert all(len(images) <= batch_size for images in sampler.returned)
        seen.append(metrics)
    assert seen[1] == pytest.approx(seen[0], rel=1e-4)
    assert seen[2] == pytest.approx(seen[0], rel=1e-4)


def test_checks_are_kept_in_a_table_and_those_of_a_resumed_training_stay(handler, tmp_path, monkeypatch, caplog):
    table = tmp_path / "watch" / "checks.csv"
    first = handler(PlantingSampler(0.0, 0.2, 0.4))
    engine = Engine(lambda engine, batch: None)
    first.attach(engine)
    seen = []
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: seen.append(dict(engine.state.metrics)))
    engine.run([0], max_epochs=3)

    checks = pd.read_csv(table)
    assert checks["epoch"].tolist() == [1, 2, 3]
    assert checks["n_images"].tolist() == [N] * 3
    for name in METRICS:
        assert checks[name].tolist() == pytest.approx([metrics[name] for metrics in seen])

    resumed = Engine(lambda engine, batch: None)
    handler(PlantingSampler(0.6)).attach(resumed)
    resumed.add_event_handler(Events.STARTED, lambda engine: setattr(engine.state, "epoch", 2))
    resumed.run([0], max_epochs=4)
    after = pd.read_csv(table)
    assert after["epoch"].tolist() == [1, 2, 3, 4]
    assert after[:2].equals(checks[:2])
    assert (after["n_copies"][2:] >= 0.6 * N).all()

    quiet(handler(PlantingSampler(0.0)), max_epochs=1)
    assert pd.read_csv(table)["epoch"].tolist() == [1]

    def full(*_: object) -> None:
        raise InputError("checks.csv: no space left")

    monkeypatch.setattr("monai_memorization.monitoring.write_text", full)
    assert quiet(handler(PlantingSampler(0.5)), max_epochs=2).state.metrics["n_copies"] >= 0.5 * N
    assert "epoch 2: the counts are not kept: checks.csv: no space left" in caplog.text
    assert pd.read_csv(table)["epoch"].tolist() == [1]

    table.write_text("something else\n1\n")
    with pytest.raises(InputError, match=r"checks\.csv: cannot be read as the checks of .*; remove it"):
        quiet(handler(PlantingSampler(0.0)), max_epochs=1)
    assert table.read_text() == "something else\n1\n"


def test_first_epoch_and_every_interval_are_checked(handler):
    engine, epochs = Engine(lambda engine, batch: None), []
    sampler = PlantingSampler(0.0)
    handler(sampler, interval=3).attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: epochs.append(len(sampler.drawn) // N))
    engine.run([0], max_epochs=7)
    assert epochs == [1, 1, 2, 2, 2, 3, 3]


class Writer:
    """Keeps what MONAI writes to TensorBoard, which is not among our requirements."""

    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def flush(self) -> None:
        """Nothing is buffered."""


@pytest.mark.parametrize("first", [True, False])
def test_handlers_of_monai_see_the_counts_of_the_same_epoch(handler, tmp_path, caplog, monkeypatch, first):
    monkeypatch.setattr(logging.getLogger("ours"), "handlers", [caplog.handler])  # MONAI's loggers tell no other
    network, writer, shares = small_network(), Writer(), (0.0, 0.5, 0.25)
    others = [
        StatsHandler(iteration_log=False, name="ours"),
        TensorBoardStatsHandler(writer, iteration_log=False),
        CheckpointSaver(
            str(tmp_path / "models"),
            {"network": network},
            save_key_metric=True,
            key_metric_name="copy_rate",
            key_metric_n_saved=3,
        ),
    ]
    ours = handler(PlantingSampler(*shares))
    engine = trainer(network, [ours, *others] if first else [*others, ours])
    seen: list[dict[str, float]] = []
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append(dict(engine.state.metrics)))
    engine.run()

    rates = [metrics["copy_rate"] for metrics in seen]
    assert rates[0] < 0.2 < rates[2] < 0.4 < rates[1]
    assert [(value, step) for name, value, step in writer.scalars if name == "copy_rate"] == list(
        zip(rates, (1, 2, 3), strict=True)
    )
    lines = [record.getMessage() for record in caplog.records if "Metrics --" in record.getMessage()]
    assert [f"copy_rate: {rate:.4f}" in line for rate, line in zip(rates, lines, strict=True)] == [True] * 3
    # a rate that does not beat the kept ones is kept too while there are fewer than three
    names = {path.name for path in (tmp_path / "models").iterdir()}
    assert {f"network_key_metric={rate:.4f}.pt" for rate in rates} == names


def test_training_stops_at_the_limit_and_the_last_model_within_it_is_kept(handler, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    network = small_network()
    weights: list[Tensor] = []
    ours = handler(PlantingSampler(0.0, 0.05, 0.5, 0.0), copy_rate_limit=0.25, interval=2)
    saver = WithinLimitSaver(str(tmp_path / "models"), {"network": network}, "model.pt")
    engine = trainer(network, [saver, ours], max_epochs=9)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: weights.append(network[0].weight.detach().clone()))
    engine.run()

    told = [record.getMessage() for record in caplog.records if "images drawn" in record.getMessage()]
    assert [line.split(", n_mem")[0] for line in told[:1]] == [f"epoch 1: {N} images drawn; n_copies 0, copy_rate 0"]
    assert [line[:8] for line in told] == ["epoch 1:", "epoch 2:", "epoch 4:"]
    # checks at 1, 2 and 4; the weights of epoch 3, which nobody checked, are not taken
    assert engine.state.epoch == 4
    assert engine.state.metrics["last_epoch_within_limit"] == 2
    assert torch.equal(torch.load(tmp_path / "models" / "model.pt", weights_only=True)["0.weight"], weights[1])


def test_a_second_run_keeps_its_own_model(handler, tmp_path):
    torch.manual_seed(0)  # weights that ran off to NaN would equal nothing
    network = small_network()
    saver = WithinLimitSaver(str(tmp_path), {"network": network}, "model.pt")
    engine = trainer(network, [handler(PlantingSampler(0.0), copy_rate_limit=0.25), saver], max_epochs=1)
    for _ in range(2):
        engine.run()
    assert engine.state.epoch == 1
    assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=True)["0.weight"], network[0].weight)


@pytest.mark.parametrize("limit", [0.25, None])
def test_no_model_is_kept_before_a_check_was_passed(handler, tmp_path, limit):
    network = small_network()
    saver = WithinLimitSaver(str(tmp_path / "models"), {"network": network})
    engine = trainer(network, [handler(PlantingSampler(0.5), copy_rate_limit=limit), saver], max_epochs=2)
    engine.run()
    assert engine.state.epoch == (2 if limit is None else 1)
    assert not list((tmp_path / "models").glob("*"))


def test_images_of_another_size_than_those_of_the_training_are_told_once(handler, caplog):
    items = Dataset([{"image": image[None]} for image in smooth_images(40, seed=1)])
    smaller = PlantingSampler(0.5)
    smaller.training = smaller.training[..., ::2]
    for sampler, told in ((smaller, 1), (PlantingSampler(0.5), 0)):
        caplog.clear()
        quiet(handler(sampler, training=items, batch_size=10))
        lines = [record.getMessage() for record in caplog.records if "copies may go unseen" in record.getMessage()]
        assert len(lines) == told


def test_an_inferer_that_is_a_module_by_name_only_is_not_in_the_way(handler):
    class Holder:
        def __init__(self) -> None:
            self.network, self.inferer = small_network(), VQVAETransformerInferer()

    holder = Holder()
    assert isinstance(holder.inferer, nn.Module)
    assert networks_of(holder) == [holder.network]
    engine = trainer(holder.network, [handler(PlantingSampler(0.5))], max_epochs=1)
    engine.unused = holder.inferer
    engine.run()
    assert engine.state.metrics["n_copies"] > 0


def test_what_stops_one_process_stops_the_other_with_the_same_message(encoder_file, tmp_path):
    script = tmp_path / "stopped.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "import torch\n"
        "import torch.distributed as dist\n"
        "from ignite.engine import Engine\n"
        "from made_up_images import smooth_images\n"
        "from monai.data import Dataset, partition_dataset\n"
        "from monai_memorization import InputError\n"
        "from monai_memorization.handlers import MemorizationHandler\n"
        "dist.init_process_group('gloo')\n"
        "rank = dist.get_rank()\n"
        "def items(n, seed):\n"
        "    images = smooth_images(n, seed=seed)[:, None]\n"
        "    return [{'image': image, 'patient_id': 100 * seed + i} for i, image in enumerate(images)]\n"
        "def sampler(seeds):\n"
        "    return torch.full((len(seeds), 1, 16, 16), float('nan')) if rank else smooth_images(len(seeds))[:, None]\n"
        "network = torch.nn.BatchNorm2d(1)\n"
        "def restless(seeds):\n"
        "    return network(smooth_images(len(seeds))[:, None])\n"
        "def run(case, training, validation, sampler=sampler):\n"
        "    engine = Engine(lambda engine, batch: None)\n"
        "    engine.network = network\n"
        "    sets = Dataset(training), Dataset(validation)\n"
        "    MemorizationHandler(*sets, sampler, 'watch', encoder=sys.argv[1], n_images=33).attach(engine)\n"
        "    try:\n"
        "        engine.run([0])\n"
        "    except InputError as error:\n"
        "        Path(f'{case}_{rank}').write_text(str(error))\n"
        "run('divided', partition_dataset(items(40, 1), num_partitions=2)[rank], items(40, 2))\n"
        "assert not Path('watch').exists()\n"
        "run('few', items(40, 1), items(10, 2))\n"
        "run('nan', items(40, 1), items(40, 2))\n"
        "run('mode', items(40, 1), items(40, 2), restless)\n"
        "dist.destroy_process_group()\n"
    )
    result = torchrun(script, encoder_file, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    for case, message in (
        ("divided", "training: each process was given other images"),
        ("few", "validation: 5 of 10 patients are left for monitoring"),
        ("nan", "sampler: for 16 seeds from 1000001 on it returned NaN"),
        ("mode", "sampler: ran a network of the training in training mode"),
    ):
        told = {(tmp_path / f"{case}_{rank}").read_text() for rank in (0, 1)}
        assert len(told) == 1
        assert told.pop().startswith(message)


@pytest.mark.filterwarnings("ignore:'(min|cumulative)_delta' is deprecated:DeprecationWarning")  # as MONAI calls Ignite
def test_early_stopping_of_monai_works_on_the_counts(handler):
    network = small_network()
    stop = EarlyStopHandler(1, lambda engine: -engine.state.metrics["copy_rate"])
    engine = trainer(network, [handler(PlantingSampler(0.3, 0.0, 0.6)), stop], max_epochs=9)
    stop.set_trainer(engine)
    engine.run()
    assert engine.state.epoch == 3


def test_half_of_the_patients_steer_the_training_and_the_audit_leaves_them_out(
    handler, training_folder, encoder_file, validation, tmp_path
):
    quiet(handler(PlantingSampler(0.0)), max_epochs=1)
    file = tmp_path / "watch" / "monitoring.csv"
    monitored = set(pd.read_csv(file)["image_id"])
    listed = pd.read_csv(validation)
    used = listed["image"].isin(monitored)
    assert used.sum() == 40
    assert set(listed["patient_id"][used]) & set(listed["patient_id"][~used]) == set()

    drawn = write_folder(smooth_images(20, seed=5), tmp_path / "drawn")
    report = audit(training_folder, validation, drawn, tmp_path / "out", encoder=encoder_file, monitoring=file)

    assert report["sets"]["validation"] | {"n_images": 40, "n_patients": 20} == report["sets"]["validation"]
    assert report["provenance"]["settings"]["monitored_left_out"] is True


def test_data_sets_are_written_once_and_can_be_audited_later(handler, tmp_path, few_steps):
    class Source:
        def __init__(self, seed: int) -> None:
            self.data = [
                {"scan": image[None] * 2 - 1, "patient_id": f"{seed}-{i}"}
                for i, image in enumerate(smooth_images(40, seed=seed))
            ]

        def __len__(self) -> int:
            return len(self.data)

        def __getitem__(self, index: int):
            return self.data[index]

    sets = {"training": Source(1), "validation": Source(2)}
    ours = partial(handler, encoder=None, image_key="scan", **sets)
    metrics = quiet(ours(PlantingSampler(0.5)), max_epochs=1).state.metrics
    assert metrics["n_copies"] >= 20
    weights = (tmp_path / "watch" / "encoder" / "model.pt").stat().st_mtime_ns
    quiet(ours(PlantingSampler(0.5)), max_epochs=1)
    assert (tmp_path / "watch" / "encoder" / "model.pt").stat().st_mtime_ns == weights

    watch = tmp_path / "watch"
    drawn = write_folder(smooth_images(10, seed=1), tmp_path / "drawn", suffix=".npy")
    report = audit(
        watch / "training.csv",
        watch / "validation.csv",
        drawn,
        tmp_path / "out",
        encoder=watch / "encoder" / "model.pt",
        monitoring=watch / "monitoring.csv",
    )
    assert report["calibrated"]["n_near_identical"] == 10
    assert report["sets"]["validation"]["n_patients"] == 20


def nan_at_the_second_check():
    calls = []

    def sampler(seeds):
        calls.append(seeds)
        return (
            torch.full((len(seeds), 1, 32, 32), float("nan")) if len(calls) > 3 else smooth_images(len(seeds))[:, None]
        )

    return sampler


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (nan_at_the_second_check(), r"sampler: for 16 seeds from 1000000 on it returned NaN or infinite values; look"),
        (lambda seeds: smooth_images(len(seeds)), r"returned \(16, 32, 32\), but \(16, 1, side, side\) was expected"),
        (lambda seeds: smooth_images(3)[:, None], r"returned \(3, 1, 32, 32\), but \(16, 1, side, side\) was expected"),
        (lambda seeds: torch.rand(len(seeds), 3, 32, 32), r"returned 3 channels, where the training set has 1"),
        (lambda seeds: torch.rand(len(seeds), 1, 8, 8, 8), r"returned \(16, 1, 8, 8, 8\), but"),
        (lambda seeds: None, r"returned NoneType, but"),
    ],
)
def test_sampler_that_returns_no_images_is_named(handler, sampler, message):
    with pytest.raises(InputError, match=message):
        quiet(handler(sampler))


def scaled_to(low: float, high: float) -> Dataset:
    """Training images between two values."""
    return Dataset([{"image": low + (high - low) * image[None]} for image in smooth_images(20, seed=1)])


class Generator(nn.Module):
    """Draws noise between two values."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(1, 1)

    def forward(self, codes: Tensor) -> Tensor:
        return codes[:, None, None].expand(-1, 1, 32, 32) + torch.linspace(-1, 1, 32)


@pytest.mark.parametrize(
    ("low", "high", "told", "clip"),
    [
        (0, 1, (0, 1), None),
        (-0.02, 1.02, (0, 1), None),
        (-1, 1, (-1, 1), None),
        (-3024, 500, (-1000, 500), (-1000, 500)),
    ],
)
def test_sampler_that_knows_the_range_of_the_images_is_taken(handler, few_steps, low, high, told, clip):
    sampler = GeneratorSampler(Generator(), 32, told)
    engine = quiet(handler(sampler, training=scaled_to(low, high), clip=clip, encoder=None), max_epochs=1)
    assert engine.state.metrics.keys() == METRICS


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (0, 255)])
def test_sampler_that_would_cut_off_what_is_drawn_is_refused(handler, low, high):
    message = r"sampler: its value_range is \[0, 1\], .* reach from about .* to .*; give .* as value_range"
    with pytest.raises(InputError, match=message):
        quiet(handler(GeneratorSampler(Generator(), 32), training=scaled_to(low, high)))


def test_folder_that_cannot_be_written_in_is_named_before_anything_is_done(handler, training_folder, tmp_path):
    (tmp_path / "file").touch()
    given = tmp_path / "file" / "watch"
    for ours in (
        handler(PlantingSampler(0.0), training=scaled_to(0, 1), output_dir=given),
        EncoderTrainingHandler(training_folder, given),
    ):
        with pytest.raises(InputError, match=r"watch: cannot be written \(.*file is a file\); choose another folder"):
            quiet(ours)


@pytest.mark.parametrize("role", ["training", "validation"])
def test_sets_that_are_not_given_are_named(handler, role):
    with pytest.raises(InputError, match=f"{role}: no images are given; give a folder"):
        handler(PlantingSampler(0.0), **{role: None})


def test_constant_images_of_an_untrained_model_are_no_copies(handler):
    metrics = quiet(handler(lambda seeds: torch.ones(len(seeds), 1, 32, 32)), max_epochs=1).state.metrics
    assert metrics["n_copies"] == 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"interval": 0}, "interval: found 0"),
        ({"n_images": 0}, "n_images: found 0"),
        ({"batch_size": -1}, "batch_size: found -1"),
        ({"copy_rate_limit": 5}, "copy_rate_limit: found 5"),
        ({"monitoring_share": 0}, "monitoring_share: found 0"),
        ({"n_images": "ten"}, "n_images: found 'ten', but must be a whole number of at least 1"),
        ({"interval": 2.5}, "interval: found 2.5"),
        ({"copy_rate_limit": "low"}, "copy_rate_limit: found 'low'"),
        ({"monitoring_share": "half"}, "monitoring_share: found 'half'"),
        ({"alpha": 2}, "alpha: found 2"),
    ],
)
def test_number_out_of_its_range_is_refused_at_once(handler, setting, message):
    with pytest.raises(InputError, match=message):
        handler(PlantingSampler(0.0), **setting)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"monitoring_share": 0.4},
            "validation: 16 of 40 patients are left for monitoring, but .* alpha 0.05 need 19; give 48 pat",
        ),
        ({"alpha": 0.01}, "validation: 20 of 40 patients .*, but .* alpha 0.01 need 99; give 198 patients"),
        ({"training": "nowhere"}, "training: nowhere does not exist"),
        ({"encoder": "nowhere.pt"}, "encoder: nowhere.pt does not exist"),
    ],
)
def test_images_that_cannot_be_used_are_refused_at_the_start(handler, tmp_path, settings, message):
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "monitoring.csv").write_text("of an earlier training")

    with pytest.raises(InputError, match=message):
        quiet(handler(PlantingSampler(0.0), **settings))
    assert (tmp_path / "watch" / "monitoring.csv").read_text() == "of an earlier training"


def test_validation_image_from_the_training_set_is_refused(handler, training_folder, tmp_path):
    folder = write_folder(smooth_images(40, seed=1), tmp_path / "same")
    with pytest.raises(InputError, match="validation: 20 of its images are in the training set too"):
        quiet(handler(PlantingSampler(0.0), validation=folder))
    assert not (tmp_path / "watch" / "monitoring.csv").exists()
