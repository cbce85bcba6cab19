"""The mathematics of diffusion: schedules, process, samplers, guidance, constraints."""

from diffrl_lightning.diffusion.constraints import Inpaint, inpaint
from diffrl_lightning.diffusion.draw import Sampler, Sampling, draw
from diffrl_lightning.diffusion.edm import EDM, heun_sample, heun_steps
from diffrl_lightning.diffusion.gaussian import GaussianDiffusion, PredictionType
from diffrl_lightning.diffusion.guidance import classifier_free, compose, value_guided
from diffrl_lightning.diffusion.noise import choose, rand, randint, randn
from diffrl_lightning.diffusion.policy_guided import (
    PolicyDrawn,
    PolicyGuided,
    ScoreFn,
    follow_gaussian,
    score_of,
)
from diffrl_lightning.diffusion.samplers import (
    ddim_sample,
    ddpm_sample,
    dpmpp_sample,
    inference_timesteps,
)
from diffrl_lightning.diffusion.schedules import (
    BetaSchedule,
    cosine_betas,
    linear_betas,
    make_betas,
    power_cosine_betas,
    vp_betas,
)

__all__ = [
    "EDM",
    "BetaSchedule",
    "GaussianDiffusion",
    "Inpaint",
    "PolicyDrawn",
    "PolicyGuided",
    "PredictionType",
    "Sampler",
    "Sampling",
    "ScoreFn",
    "choose",
    "classifier_free",
    "compose",
    "cosine_betas",
    "ddim_sample",
    "ddpm_sample",
    "dpmpp_sample",
    "draw",
    "follow_gaussian",
    "heun_sample",
    "heun_steps",
    "inference_timesteps",
    "inpaint",
    "linear_betas",
    "make_betas",
    "power_cosine_betas",
    "rand",
    "randint",
    "randn",
    "score_of",
    "value_guided",
    "vp_betas",
]
