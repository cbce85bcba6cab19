"""What every role must do; each role's test calls it with a module, a batch and a datamodule."""

import lightning.pytorch as pl
import torch

from diffrl_lightning.data import ChunkData
from diffrl_lightning.modules import LatentDiffusion, LatentSkills, Role


def quiet_trainer(tmp_path, **options):
    """A trainer on the CPU that writes and prints nothing by itself."""
    defaults = {"enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_model_summary=False,
        **defaults | options,
    )


def ready(datamodule):
    """The datamodule with its data read."""
    datamodule.prepare_data()
    datamodule.setup("fit")
    return datamodule


def transitions(n=8):
    """A batch of transitions, every other one the last of its episode."""
    return {
        "observations": torch.randn(n, 3),
        "actions": torch.rand(n, 1) * 2 - 1,
        "rewards": torch.randn(n),
        "next_observations": torch.randn(n, 3),
        "terminations": torch.tensor([0.0, 1.0]).repeat(n // 2),
        "steps": torch.tensor([2.0, 1.0, 3.0, 1.0]).repeat(n)[:n],
        "returns": torch.randn(n),
        "origins": torch.zeros(n, dtype=torch.long),
    }


def units_do_not_matter(module, batch, *, decide):
    """Losses and actions are those of normalised data, whatever the units of the environment.

    ``decide`` makes actions of states; states are the three observations, actions are one.
    """
    data = module.trajectory
    observations, actions = batch["observations"], batch["actions"]
    for part, x in ((data.observations, observations), (data.actions, actions)):
        torch.testing.assert_close(part.normalize(x), x)  # they begin as identities

    def outcome(batch, states):
        torch.manual_seed(0)
        loss = module.compute_loss(batch)[0].item()
        torch.manual_seed(0)
        return loss, decide(states)

    expected_loss, expected_actions = outcome(batch, observations)
    scale, shift = torch.tensor([2.0, 0.5, 3.0]), torch.tensor([1.0, -2.0, 0.0])
    data.actions.low.fill_(-6)
    data.actions.high.fill_(2)
    if hasattr(data.observations, "mean"):
        data.observations.mean.copy_(shift)
        data.observations.std.copy_(scale)
    else:
        data.observations.low.copy_(shift - scale)
        data.observations.high.copy_(shift + scale)
    moved = dict(batch)
    for key in ("observations", "next_observations"):
        if key in batch:
            moved[key] = batch[key] * scale + shift
    moved["actions"] = 4 * (actions + 1) - 6
    loss, found = outcome(moved, observations * scale + shift)
    assert abs(loss - expected_loss) < 1e-4 * (1 + abs(expected_loss))
    torch.testing.assert_close(found, 4 * (expected_actions + 1) - 6, atol=1e-4, rtol=1e-4)


def saved(module, path):
    """The path of a checkpoint of a module as it is."""
    checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return str(path)


def small_skills(dataset):
    """Latent skills of a dataset as they begin."""
    module = LatentSkills(3, 1, horizon=8, latent_dim=4, hidden_dim=16, num_layers=1)
    module.fit_normalizers(ready(ChunkData(str(dataset), horizon=8)))
    return module.eval()


def small_prior(dataset):
    """A diffusion prior over such skills as it begins."""
    module = LatentDiffusion(
        3,
        1,
        horizon=8,
        latent_dim=4,
        hidden_dim=16,
        num_blocks=1,
        embed_dim=16,
        num_train_timesteps=8,
    )
    module.skills = small_skills(dataset)
    module.fit_normalizers(ready(ChunkData(str(dataset), horizon=8)))
    return module.eval()


def check_role(
    module, datamodule, tmp_path, *, acts=True, noisy=True, loss=None, lr=3e-3, steps=60
):
    """Fit, save, reload, act: the same for every role.

    ``noisy``: whether its policy draws; ``loss``: the part of the logged losses that is to fall where
    their sum has moving targets; ``lr`` and ``steps``: of its descent.
    """
    trainer = quiet_trainer(tmp_path, max_steps=2, limit_val_batches=1)
    begun = averages(module)
    trainer.fit(module, datamodule=datamodule)
    assert all(not torch.equal(*pair) for pair in zip(begun, averages(module), strict=True))
    batch = next(iter(datamodule.train_dataloader()))
    loss_falls_on_one_batch(module, batch, loss, lr, steps)
    every_parameter_gets_a_gradient(module, batch)
    path = tmp_path / "role.ckpt"
    trainer.save_checkpoint(path)
    (logged,) = trainer.validate(module, datamodule=datamodule, verbose=False)
    assert logged.keys() == {f"val/{name}" for name in module.val_metrics}
    reloaded = checkpoint_reloads_bit_equal(module, path)
    if acts:
        policy_is_deterministic_by_seed(reloaded, datamodule, noisy=noisy)


def averages(module):
    """All weights of each of the averages."""
    nets = module.averages()
    assert nets
    return [torch.cat([p.flatten() for p in net.parameters()]) for net in nets]


def loss_falls_on_one_batch(module, batch, part, lr, steps):
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(steps):
        torch.manual_seed(0)
        loss, info = module.compute_loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append((info[part] if part else loss).item())
    assert losses[-1] < 0.7 * losses[0], losses[:: steps // 6]


def every_parameter_gets_a_gradient(module, batch):
    module.zero_grad()
    module.compute_loss(batch)[0].backward()
    missing = [
        name
        for name, p in module.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    ]
    assert not missing, missing


def checkpoint_reloads_bit_equal(module, path):
    torch.load(path, weights_only=True)
    for loader in (type(module), Role):
        reloaded = loader.load_from_checkpoint(path)
        assert type(reloaded) is type(module)
        assert not reloaded.training
        expected = module.state_dict()
        assert expected.keys() == reloaded.state_dict().keys()
        assert all(torch.equal(v, reloaded.state_dict()[k]) for k, v in expected.items())
    return reloaded


def policy_is_deterministic_by_seed(module, datamodule, noisy=True, **sampling):
    n = 3
    env = datamodule.make_vector_env(n)
    observations = torch.as_tensor(env.reset(seed=[1, 2, 1])[0], dtype=torch.float32)
    mask = torch.ones(n, dtype=torch.bool)

    def act(seeds):
        policy = module.make_policy(**sampling)
        policy.reset(mask, seeds)
        return torch.stack([policy.act(observations) for _ in range(3)])

    first, second, other = act([1, 2, 1]), act([1, 2, 1]), act([3, 4, 3])
    assert not first.requires_grad
    assert first.shape == (3, n, datamodule.action_dim)
    assert torch.isfinite(first).all()
    assert torch.equal(first, second)
    assert torch.equal(first, other) != noisy
    torch.testing.assert_close(first[:, 0], first[:, 2], atol=1e-5, rtol=1e-4)
