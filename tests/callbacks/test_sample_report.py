"""What a synthesizer reports at every validation."""

import pytest
import torch
from helpers import fit_args
from modules.role_tester import quiet_trainer, ready
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffrl_lightning import (
    DataSynthesizer,
    InputError,
    SampleReport,
    SynthesisSampling,
    TransitionData,
)
from diffrl_lightning.cli import main


@pytest.mark.parametrize("role", ["data_synthesizer", "trajectory_synthesizer"])
def test_figures_and_a_picture(role, tmp_path, monkeypatch, pendulum_file):
    monkeypatch.chdir(tmp_path)
    main(fit_args(pendulum_file, role=role))
    run = tmp_path / "runs" / "diffrl" / "version_0"
    events = EventAccumulator(str(run)).Reload()
    for name in ("val/marginal", "val/correlation"):
        values = [event.value for event in events.Scalars(name)]
        assert len(values) == 2
        assert all(0 < value < 1 for value in values)
    assert "val/samples" in events.Tags()["images"]
    assert (run / "samples_val.png").stat().st_size > 5_000


def test_perfect_samples_score_1(tmp_path, pendulum_file):
    """Samples that are the held-out rows themselves, in another order."""
    data = ready(TransitionData(str(pendulum_file)))
    n = len(data.val_data)
    batch = data.val_data[torch.randperm(n)]
    module = DataSynthesizer(3, 1, hidden_dim=8, num_blocks=1, embed_dim=8)
    module.sample = lambda *_, **__: {k: v for k, v in batch.items() if k != "returns"}
    trainer = quiet_trainer(tmp_path, limit_val_batches=1, callbacks=[SampleReport(n)])
    trainer.validate(module, datamodule=data, verbose=False)
    assert trainer.callback_metrics["val/marginal"] == 1
    assert trainer.callback_metrics["val/correlation"] == pytest.approx(1)


def test_ways_to_sample_are_refused_before_training(tmp_path, pendulum_file):
    report = SampleReport(sampling=SynthesisSampling(sampler="heun"))
    module = DataSynthesizer(3, 1, process="ddpm", hidden_dim=8, num_blocks=1, embed_dim=8)
    with pytest.raises(InputError, match="sampler=heun needs"):
        quiet_trainer(tmp_path, max_steps=1, callbacks=[report]).fit(
            module, TransitionData(str(pendulum_file))
        )


def test_too_few_samples_are_refused():
    with pytest.raises(InputError, match="num_samples=1 must be at least 2"):
        SampleReport(1)
