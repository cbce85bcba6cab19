"""Networks: published sizes, horizons, and the weight average."""

from functools import partial

import pytest
import torch
from torch import nn

from diffrl_lightning.nets import (
    EMA,
    ActionTransformer,
    ConditionalDenoiser,
    DenoisingMLP,
    DiT1d,
    InverseDynamics,
    ResidualMLP,
    SkillCritic,
    SkillVAE,
    StepTransformer,
    TemporalUnet,
    TemporalValue,
    TwinQ,
    check_horizon,
    frozen,
    make_backbone,
    make_chunk_backbone,
    mlp,
)
from diffrl_lightning.nets.activations import mish
from diffrl_lightning.nets.conditional import ConditionEmbedding
from diffrl_lightning.nets.embeddings import FourierEmbedding
from diffrl_lightning.nets.temporal_unet import LinearAttention
from diffrl_lightning.types import InputError


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def decision_diffuser(observation_dim):
    net = TemporalUnet(observation_dim, dim=128, dim_mults=(1, 4, 8), cond_dim=128)
    return ConditionalDenoiser(net, condition_dims={"returns": 1}, embed_dim=128, drop_prob=0.25)


def perturbed(net):
    """The network with every parameter moved, so that nothing is zero because it began so."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn(p.shape, generator=g)
    return net


def chunks(backbone, observation_dim, action_dim, **kwargs):
    """A network of Diffusion Policy at its published size."""
    sizes = {"dim": 256, "dim_mults": (1, 2, 4), "depth": 8, "num_heads": 4, "dropout": 0.0}
    sizes |= {"horizon": 16, "n_obs_steps": 2} | kwargs
    return make_chunk_backbone(backbone, action_dim, observation_dim=observation_dim, **sizes)


@pytest.mark.parametrize(
    ("make", "parameters"),
    [
        (partial(chunks, "unet", 20, 2), 65_783_298),
        (partial(chunks, "unet", 60, 9), 66_942_729),
        (partial(chunks, "unet", 23, 7), 65_878_279),
        (partial(chunks, "unet", 16, 2, n_obs_steps=3), 65_897_986),
        (partial(TemporalUnet, 22, dim=256, dim_mults=(1, 2, 4), film=True), 65_245_718),
        (partial(chunks, "transformer", 20, 2), 8_965_122),
        (partial(chunks, "transformer", 23, 10, horizon=10), 8_968_458),
        (partial(chunks, "transformer", 16, 2, horizon=5, n_obs_steps=3), 8_961_538),
        (partial(chunks, "transformer", 60, 9, n_obs_steps=4, dim=768), 80_415_753),
        (partial(DenoisingMLP, 3, cond_dim=11), 141_363),
        (partial(ResidualMLP, 3, cond_dim=11), 1_640_483),
        (partial(TwinQ, 11, 3, num_layers=3), 271_362),
        (partial(TwinQ, 11, 3), 139_778),
        (partial(SkillCritic, 11, 16, hidden_dim=256, num_heads=1), 142_849),
        (partial(mlp, 11, 256, 1), 69_121),
        (partial(TemporalUnet, 6, dim_mults=(1, 4, 8)), 3_682_118),
        (partial(TemporalUnet, 14), 3_956_302),
        (partial(TemporalUnet, 23), 3_958_327),
        (partial(TemporalUnet, 23, dim_mults=(1, 4, 8)), 3_685_943),
        (partial(TemporalUnet, 23, dim_mults=(1, 4, 8), attention=True), 4_114_423),
        (partial(TemporalValue, 14, horizon=32), 2_294_817),
        (partial(TemporalValue, 23, horizon=32), 2_296_545),
        (partial(TemporalValue, 23, horizon=4, dim_mults=(1, 4, 8)), 2_180_833),
        (partial(decision_diffuser, 11), 59_732_491),
        (partial(decision_diffuser, 17), 59_737_873),
        (partial(InverseDynamics, 11, 3), 72_451),
        (partial(InverseDynamics, 17, 6), 76_294),
    ],
)
def test_published_parameter_counts(make, parameters):
    with torch.device("meta"):  # shapes alone
        net = make()
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize(
    ("part", "parameters"),
    [("encoder", 4_694_304), ("policy", 1_684_496), ("dynamics", 224_058), ("prior", 213_280)],
)
def test_published_parameter_counts_of_skills(part, parameters):
    """LDCQ on AntMaze; its code has 89,344 more that are never used."""
    with torch.device("meta"):
        net = SkillVAE(29, 8, 16, hidden_dim=256, num_layers=4, min_std=0.01)
    assert sum(p.numel() for p in getattr(net, part).parameters()) == parameters


@pytest.mark.parametrize("horizon", [4, 12, 36])
def test_any_horizon_that_divides(horizon):
    net = TemporalUnet(6, dim=8, dim_mults=(1, 2, 4))
    x = torch.randn(2, horizon, 6)
    out = net(x, torch.tensor([0, 3]))
    assert out.shape == x.shape
    out.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_the_step_matters_and_rows_do_not_mix():
    net = TemporalUnet(6, dim=8, dim_mults=(1, 2)).eval()
    x = torch.randn(3, 8, 6)
    t = torch.tensor([0, 5, 9])
    out = net(x, t)
    assert not torch.allclose(out, net(x, t.flip(0)))
    torch.testing.assert_close(out[1:2], net(x[1:2], t[1:2]), atol=1e-5, rtol=1e-5)


def test_a_step_transformer_does_not_look_ahead():
    net = perturbed(StepTransformer(5, cond_dim=2, dim=16, depth=2, num_heads=2))
    x, cond, t = torch.randn(3, 6, 5), torch.randn(3, 6, 2), torch.tensor([0, 4, 9])
    for training in (True, False):  # evaluation takes another path
        net.train(training)
        before = net(x, t, cond)
        moved = cond.clone()
        moved[:, 3] += 1
        after = net(x, t, moved)
        torch.testing.assert_close(before[:, :3], after[:, :3])
        assert (before[:, 3:] - after[:, 3:]).abs().amin((0, 2)).min() > 0
    assert not torch.allclose(before, net(x, t.flip(0), cond))
    with pytest.raises(InputError, match="multiple of num_heads"):
        StepTransformer(5, cond_dim=2, dim=18, depth=1, num_heads=4)


def test_horizon_is_refused_with_the_nearest_good_ones():
    check_horizon(8, (1, 2, 4, 8))
    with pytest.raises(InputError, match="use 24 or 32"):
        check_horizon(30, (1, 2, 4, 8))
    with pytest.raises(InputError, match="use 8"):
        check_horizon(5, (1, 2, 4, 8))


def test_linear_attention_is_its_formula():
    """Keys are a softmax over time, head by head; values are mixed by keys^T values alone."""
    net = perturbed(LinearAttention(6, num_heads=2, head_dim=3)).double()
    x = torch.randn(4, 6, 5, dtype=torch.float64)  # (B, C, H)
    centred = x - x.mean(1, keepdim=True)
    h = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    h = h * net.norm.weight[:, None] + net.norm.bias[:, None]
    weight = net.qkv.weight.view(3, 2, 3, 6)
    q, k, v = torch.einsum("phdc,bcn->pbhdn", weight, h)
    k = k.exp() / k.exp().sum(-1, keepdim=True)
    scores = torch.einsum("bhdn,bhdm->bhnm", q / 3**0.5, k)  # the quadratic form of the same
    attended = torch.einsum("bhnm,bhem->bhen", scores, v).reshape(4, 6, 5)
    out = torch.einsum("oc,bcn->bon", net.out.weight[..., 0], attended) + net.out.bias[:, None]
    torch.testing.assert_close(net(x), x + out)


def test_unet_with_attention_and_condition():
    net = TemporalUnet(6, dim=8, dim_mults=(1, 2), attention=True, cond_dim=5)
    x, t, cond = torch.randn(3, 8, 6), torch.tensor([0, 5, 9]), torch.randn(3, 5)
    out = net(x, t, cond)
    assert not torch.allclose(out, net(x, t, cond.flip(0)))
    torch.testing.assert_close(out[1:2], net(x[1:2], t[1:2], cond[1:2]), atol=1e-5, rtol=1e-5)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("horizon", [1, 5, 8, 33])
def test_dit_takes_any_horizon_and_begins_at_zero(horizon):
    net = DiT1d(6, dim=16, depth=2, num_heads=2, cond_dim=5)
    x = torch.randn(2, horizon, 6)
    out = net(x, torch.tensor([0, 3]), torch.randn(2, 5))
    assert torch.equal(out, torch.zeros_like(x))
    assert perturbed(net)(x, torch.tensor([0, 3]), torch.randn(2, 5)).shape == x.shape


def test_dit_depends_on_step_condition_and_position_and_rows_do_not_mix():
    net = perturbed(DiT1d(6, dim=16, depth=2, num_heads=2, cond_dim=5))
    x, t, cond = torch.randn(3, 8, 6), torch.tensor([0, 5, 9]), torch.randn(3, 5)
    out = net(x, t, cond)
    assert (out - net(x, t.flip(0), cond)).abs()[[0, 2]].amax((1, 2)).min() > 1e-3
    assert (out - net(x, t, cond.flip(0))).abs()[[0, 2]].amax((1, 2)).min() > 1e-3
    torch.testing.assert_close(out[1:2], net(x[1:2], t[1:2], cond[1:2]), atol=1e-5, rtol=1e-5)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    # Attention itself knows no order: what is left without positions is equivariant.
    assert (net(x.flip(1), t, cond) - out.flip(1)).abs().max() > 1e-3
    net.position.frequencies.zero_()
    expected = net(x, t, cond).flip(1)
    torch.testing.assert_close(net(x.flip(1), t, cond), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("horizon", [1, 4, 5, 7, 30])
def test_value_of_any_horizon(horizon):
    net = perturbed(TemporalValue(6, horizon=horizon, dim=32, dim_mults=(1, 2)))
    x, t = torch.randn(3, horizon, 6), torch.tensor([-1, 5, 9])
    out = net(x, t)
    assert out.shape == (3,)
    assert (out - net(x, t.flip(0))).abs()[[0, 2]].max() > 1e-3
    torch.testing.assert_close(out[1:2], net(x[1:2], t[1:2]), atol=1e-4, rtol=1e-4)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    assert (net.head[0].weight.grad != 0).any(0).all(), "the head sees the step's embedding too"


def test_inverse_dynamics_sees_each_state_and_the_next():
    net = InverseDynamics(3, 2, hidden_dim=8)
    states = torch.randn(4, 5, 3)
    actions = net(states)
    assert actions.shape == (4, 4, 2)
    pair = torch.cat([states[:, 2], states[:, 3]], -1)
    torch.testing.assert_close(actions[:, 2], nn.Sequential(*net)(pair))


class Shown(nn.Module):
    """A network that returns the condition's embedding it was shown, at every step."""

    def forward(self, x, t, cond):
        return cond[:, None].expand(-1, x.shape[1], -1)


def conditional(drop_prob, **condition_dims):
    net = ConditionalDenoiser(
        Shown(), condition_dims=condition_dims, embed_dim=8, drop_prob=drop_prob
    )
    return partial(net, torch.zeros(2000, 1, 8), torch.zeros(2000)), net


def test_a_condition_that_is_always_dropped_is_exactly_none():
    unet = TemporalUnet(6, dim=8, dim_mults=(1, 2), cond_dim=8)
    net = ConditionalDenoiser(unet, condition_dims={"a": 1, "b": 3}, embed_dim=8, drop_prob=1.0)
    x, t = torch.randn(4, 8, 6), torch.arange(4)
    given = {"a": torch.randn(4, 1), "b": torch.randn(4, 3)}
    dropped = net(x, t, given)
    assert torch.equal(dropped, net(x, t, {}))
    assert torch.equal(dropped, unet(x, t, torch.zeros(4, 8)))
    net.eval()
    kept = net(x, t, given)
    embedding = net.embed.encoders["a"](given["a"]) + net.embed.encoders["b"](given["b"])
    torch.testing.assert_close(kept, unet(x, t, embedding))
    assert (kept - dropped).abs().max() > 1e-4


def test_a_dropped_condition_leaves_no_trace():
    """Dropped samples have neither a value nor a gradient of their condition."""
    forward, net = conditional(0.25, a=3)
    a = torch.randn(2000, 3, requires_grad=True)
    out = forward({"a": a})
    (gradient,) = torch.autograd.grad(out.square().sum(), a)
    dropped = (out == 0).all(2).all(1)
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.04)  # 4 standard errors
    assert (gradient[dropped] == 0).all()
    assert (gradient[~dropped].abs().sum(1) > 0).all()
    torch.testing.assert_close(out[~dropped][:, 0], net.embed.encoders["a"](a[~dropped]))


@pytest.mark.parametrize("sets", [False, True])
def test_what_a_condition_says_depends_on_those_that_are_always_given(sets):
    """A sum of what each says alone would have the second difference 0."""
    kinds = {"condition_dims": {"state": 2, "k": 1, "action": 1}, "embed_dim": 8, "drop_prob": 1.0}
    joint = ConditionEmbedding(**kinds, always=("state", "k")).eval()
    apart = ConditionEmbedding(**kinds).eval()
    states, ks = torch.randn(2, 2), torch.randn(2, 1)
    actions = torch.randn(2, *((3,) if sets else ()), 1)

    def told(embed, i, j):
        given = {"state": states[i : i + 1], "k": ks[i : i + 1], "action": actions[j : j + 1]}
        return embed(given, states[:1])

    def interaction(embed):
        first, second = (told(embed, i, 0) - told(embed, i, 1) for i in range(2))
        return (first - second).abs().max().item()

    assert interaction(apart) < 1e-6
    assert interaction(joint) > 1e-3
    joint.train()  # everything is dropped that may be
    torch.testing.assert_close(
        told(joint, 0, 1), joint({"state": states[:1], "k": ks[:1]}, states[:1])
    )


def test_conditions_are_dropped_one_by_one():
    forward, _ = conditional(0.5, a=1, b=1)
    given = {name: torch.randn(2000, 1, requires_grad=True) for name in "ab"}
    gradients = torch.autograd.grad(forward(given).square().sum(), list(given.values()))
    a, b = (gradient[:, 0] == 0 for gradient in gradients)
    for share in (a & b, a & ~b, ~a & b, ~a & ~b):
        assert share.float().mean().item() == pytest.approx(0.25, abs=0.04)


@pytest.mark.parametrize(
    ("drop_prob", "training", "share"), [(0.0, True, 0), (0.5, False, 0), (0.5, True, 0.5)]
)
def test_conditions_are_dropped_in_training_alone(drop_prob, training, share):
    forward, net = conditional(drop_prob, a=1)
    net.train(training)
    dropped = (forward({"a": torch.randn(2000, 1)}) == 0).all(2)
    assert dropped.float().mean().item() == pytest.approx(share, abs=0.05 * (share > 0))


BACKBONE = {"horizon": 8, "dim": 16, "dim_mults": (1, 2), "attention": False, "depth": 1,
            "num_heads": 2}  # fmt: skip


@pytest.mark.parametrize("backbone", ["unet", "dit"])
@pytest.mark.parametrize("cond_dim", [0, 5])
def test_backbones_by_name(backbone, cond_dim):
    net = make_backbone(backbone, 6, **BACKBONE, cond_dim=cond_dim)
    assert isinstance(net, {"unet": TemporalUnet, "dit": DiT1d}[backbone])
    x, cond = torch.randn(2, 8, 6), torch.randn(2, cond_dim) if cond_dim else None
    assert net(x, torch.tensor([0, 3]), cond).shape == x.shape


@pytest.mark.parametrize(
    ("backbone", "kwargs", "message"),
    [
        ("mlp", {}, "choose unet or dit"),
        ("unet", {"horizon": 7}, "use 6 or 8"),
        ("unet", {"dim": 12}, "multiple of 8"),
        ("dit", {"num_heads": 3}, r"multiple of 2 \* num_heads=3"),
        ("dit", {"dim": 17}, "dim=17 must be at least 4 and a multiple"),
    ],
)
def test_unsuitable_backbones_are_refused(backbone, kwargs, message):
    with pytest.raises(InputError, match=message):
        make_backbone(backbone, 6, **(BACKBONE | kwargs))
    assert make_backbone("dit", 6, **(BACKBONE | {"horizon": 7})), "no horizon is wrong for it"


def test_ema_follows_decay_interval_and_start():
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 0.0)
    ema = EMA(net, decay=0.9, update_every=2, start=4)
    values = []
    for step in range(1, 9):
        nn.init.constant_(net.weight, float(step))
        ema.update(net, step)
        values.append(ema.net.weight.item())
    # copied at 2 and 4; then 0.9 * 4 + 0.1 * 6 = 4.2 and 0.9 * 4.2 + 0.1 * 8 = 4.58
    assert values == pytest.approx([0, 2, 2, 4, 4, 4.2, 4.2, 4.58])


def test_ema_stays_in_evaluation_mode_and_needs_no_gradient():
    ema = EMA(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)))
    ema.train()
    assert not ema.training
    assert not ema.net[1].training
    assert not any(p.requires_grad for p in ema.parameters())
    with pytest.raises(InputError, match="decay"):
        EMA(nn.Linear(1, 1), decay=1.0)


def test_mish_and_its_two_derivatives_are_those_of_pytorch():
    x = torch.cat([torch.linspace(-30, 30, 601), torch.tensor([-200.0, -90.0, 90.0, 1e4])])
    g = torch.randn_like(x)
    found = []
    for function, dtype in ((mish, x.dtype), (nn.functional.mish, torch.float64)):
        leaf, direction = x.to(dtype).requires_grad_(), g.to(dtype)
        y = function(leaf)
        (slope,) = torch.autograd.grad(y, leaf, direction, create_graph=True)
        (bend,) = torch.autograd.grad(slope, leaf, torch.ones_like(leaf))
        (alone,) = torch.autograd.grad(function(leaf), leaf, direction)
        found.append([part.detach().double() for part in (y, slope, bend, alone)])
    # PyTorch's own second derivative is NaN where exp(x) overflows; it is 0 there.
    assert found[1][2].isnan().any()
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs.nan_to_num(0.0), atol=1e-6, rtol=1e-6)
    leaf = torch.randn(8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mish, leaf)
    assert torch.autograd.gradgradcheck(mish, leaf)
    half = torch.tensor([-1.0, 2.0, 200.0], dtype=torch.bfloat16, requires_grad=True)
    slopes = [
        torch.autograd.grad(function(half).sum(), half, create_graph=again)[0]
        for function, again in ((mish, False), (nn.functional.mish, False), (mish, True))
    ]
    assert torch.equal(slopes[0], slopes[1])
    torch.testing.assert_close(slopes[2], slopes[1])
    assert torch.autograd.grad(slopes[2].sum(), half)[0].isfinite().all()


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("activation", ["mish", "relu"])
def test_critics_computed_together_are_those_computed_one_by_one(activation, layer_norm):
    kwargs = {"activation": activation, "layer_norm": layer_norm}
    net = TwinQ(3, 2, hidden_dim=8, num_layers=2, num_heads=3, **kwargs)
    states, actions = torch.randn(5, 3), torch.randn(5, 2)
    together = net(states, actions)
    assert together.shape == (3, 5)
    function = {"mish": nn.functional.mish, "relu": torch.relu}[activation]
    for head in range(3):
        h = torch.cat([states, actions], 1)
        for layer, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
            h = h @ weight[head] + bias[head]
            if layer_norm and layer < 2:
                h = (h - h.mean(1, keepdim=True)) / (
                    h.var(1, correction=0, keepdim=True) + 1e-5
                ).sqrt()
            h = h if layer == 2 else function(h)
        torch.testing.assert_close(together[head], h[:, 0])


def test_critics_begin_as_linear_layers_do():
    net = TwinQ(11, 3, num_layers=3)
    for weight, bias in zip(net.weights, net.biases, strict=True):
        bound = weight.shape[1] ** -0.5
        for values in (weight, bias):
            assert values.abs().max() <= bound
            if values.numel() > 100:
                assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_frozen_lets_gradients_through_and_none_in():
    net = mlp(3, 8, 1)
    x = torch.randn(4, 3, requires_grad=True)
    assert torch.equal(frozen(net)(x), net(x))
    frozen(net)(x).sum().backward()
    assert all(p.grad is None for p in net.parameters())
    through = x.grad.clone()
    x.grad = None
    net(x).sum().backward()
    assert torch.equal(x.grad, through)
    assert through.abs().sum() > 0


def causal():
    return perturbed(
        ActionTransformer(
            2, horizon=6, observation_dim=3, n_obs_steps=3, dim=16, depth=2, num_heads=2
        )
    ).eval()


def test_actions_attend_to_earlier_ones_and_to_observations_of_their_time():
    net, x, t, cond = causal(), torch.randn(1, 6, 2), torch.tensor([3]), torch.randn(1, 9)
    out = net(x, t, cond)

    def changed(other_x=x, other_t=t, other_cond=cond):
        return ((net(other_x, other_t, other_cond) - out).abs().amax((0, 2)) > 1e-5).tolist()

    moved = x.clone()
    moved[:, 3] += 1
    assert changed(other_x=moved) == [False] * 3 + [True] * 3
    for step in range(3):
        seen = cond.clone().view(1, 3, 3)
        seen[:, step] += 1
        assert changed(other_cond=seen.flatten(1)) == [False] * step + [True] * (6 - step)
    assert all(changed(other_t=torch.tensor([4])))


@pytest.mark.parametrize("backbone", ["unet", "transformer", "mlp"])
def test_chunk_networks_depend_on_all_they_are_given_and_rows_do_not_mix(backbone):
    small = {"dim": 16, "dim_mults": (1, 2), "depth": 2, "num_heads": 2, "horizon": 8}
    net = perturbed(chunks(backbone, 3, 2, **small)).eval()
    x, t, cond = torch.randn(3, 8, 2), torch.tensor([0, 5, 9]), torch.randn(3, 6)
    out = net(x, t, cond)
    assert out.shape == x.shape
    assert (out - net(x, t.flip(0), cond)).abs()[[0, 2]].amax((1, 2)).min() > 1e-3
    assert (out - net(x, t, cond.flip(0))).abs()[[0, 2]].amax((1, 2)).min() > 1e-3
    torch.testing.assert_close(out[1:2], net(x[1:2], t[1:2], cond[1:2]), atol=1e-5, rtol=1e-5)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_film_scales_and_shifts():
    net = TemporalUnet(2, dim=8, dim_mults=(1,), cond_dim=3, film=True)
    block = net.down[0][0]
    x, embedding = torch.randn(2, 2, 4), torch.randn(2, 11)
    scale, shift = block.embed(embedding)[:, :, None].chunk(2, 1)
    expected = block.conv_out(scale * block.conv_in(x) + shift) + block.skip(x)
    torch.testing.assert_close(block(x, embedding), expected)


def test_average_warms_up_by_a_power():
    """Step k keeps 1 - k^-power, at most the decay: first a copy, at power 1 the mean of all."""
    net = nn.Linear(1, 1, bias=False)
    ema = EMA(net, decay=0.9, power=1.0)
    seen = []
    for step, weight in enumerate([3.0, 5.0, 10.0, 2.0], 1):
        net.weight.data.fill_(weight)
        ema.update(net, step)
        seen.append(ema.net.weight.item())
    assert seen == pytest.approx([3, 4, 6, 5])
    net.weight.data.fill_(15.0)
    ema.update(net, 1000)
    assert ema.net.weight.item() == pytest.approx(6)


def test_the_causal_network_is_one_graph():
    """Nothing in it waits for a value, as CUDA graphs want it."""
    net = causal()
    expected = net(torch.ones(1, 6, 2), torch.tensor([3]), torch.ones(1, 9))
    net.compile(backend="eager", fullgraph=True)
    found = net(torch.ones(1, 6, 2), torch.tensor([3]), torch.ones(1, 9))
    torch.testing.assert_close(found, expected)


def test_fourier_features_are_their_formula():
    net = FourierEmbedding(6)
    t = torch.tensor([0, 1, 4])
    angles = 2 * torch.pi * t[:, None] * net.frequencies
    torch.testing.assert_close(net(t), torch.cat([angles.cos(), angles.sin()], 1))
    assert FourierEmbedding(4000).frequencies.std().item() == pytest.approx(0.2, rel=0.1)
