"""Curiosity for a learner of another library. The documentation shows the adapter below."""

import numpy as np
import pytest
import tiny
from worlds import KEY

from offroad.data.spaces import Spaces
from offroad.rewards import RND, Fitting, IntrinsicRewardEnv, RNDConfig

pytest.importorskip("stable_baselines3")

# --8<-- [start:adapter]
from stable_baselines3.common.vec_env import VecEnv


class ForStableBaselines(VecEnv):
    """A Gymnasium vector environment, made with autoreset_mode SAME_STEP, as Stable-Baselines3 wants it."""

    def __init__(self, env):
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.env = env

    def reset(self):
        return self.env.reset()[0]

    def step_async(self, actions):
        self.actions = actions

    def step_wait(self):
        observation, reward, terminated, truncated, info = self.env.step(self.actions)
        infos = [{"TimeLimit.truncated": bool(cut)} for cut in truncated & ~terminated]
        for world in np.flatnonzero(terminated | truncated):
            infos[world]["terminal_observation"] = info["final_obs"][world]
        return observation, reward.astype(np.float32), terminated | truncated, infos

    def close(self):
        self.env.close()

    def get_attr(self, name, indices=None):
        return [getattr(self.env, name, None)] * self.num_envs

    def set_attr(self, name, value, indices=None):
        setattr(self.env, name, value)

    def env_method(self, name, *args, indices=None, **kwargs):
        return [getattr(self.env, name)(*args, **kwargs)]

    def env_is_wrapped(self, wrapper, indices=None):
        return [False] * self.num_envs


# --8<-- [end:adapter]


def test_ppo_of_stable_baselines_learns_from_the_bonus():
    from stable_baselines3 import PPO

    env = tiny.steps_env({"end": 3}, {"cut": 4})
    reward = RND.create(Spaces.of(env), RNDConfig(hidden=(8,), size=4, fitting=Fitting(minibatch=8)), KEY)
    curious = IntrinsicRewardEnv(env, reward, extrinsic=0.0, update_every=8)
    seen = []
    step = curious.step
    curious.step = lambda actions: seen.append(step(actions)) or seen[-1]
    model = PPO("MlpPolicy", ForStableBaselines(curious), n_steps=16, batch_size=16, n_epochs=1, device="cpu")
    model.learn(32)
    paid = np.array([reward for _, reward, *_ in seen])
    np.testing.assert_array_equal(paid, [info["intrinsic_reward"] for *_, info in seen])
    assert paid.max() > 0
    assert not tiny.same(curious.intrinsic_reward.predictor, reward.predictor)
