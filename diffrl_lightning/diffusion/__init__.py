"""The mathematics of diffusion: schedules, process, samplers, guidance, constraints."""

from diffrl_lightning.diffusion.constraints import Inpaint, inpaint, known_states
from diffrl_lightning.diffusion.draw import Sampler, Sampling, draw
from diffrl_lightning.diffusion.edm import EDM, heun_sample, heun_steps
from diffrl_lightning.diffusion.gaussian import GaussianDiffusion, PredictionType
from diffrl_lightning.diffusion.guidance import (
    GuidedSampling,
    classifier_free,
    compose,
    compose_conditions,
    value_guided,
)
from diffrl_lightning.diffusion.noise import choose, geometric, rand, randint, randn
from diffrl_lightning.diffusion.policy_guided import PolicyGuided
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
