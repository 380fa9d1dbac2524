"""Acting by primitives: as an environment of latent actions, and as a policy of the environment itself."""

import runpy

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from tiny import steps_env, train_sac
from walks import LENGTH, Walk, free, learnt, tuned, walks, worlds

from offroad.agents import BC, IQL, TD3BC, BCConfig, IQLConfig, TD3BCConfig
from offroad.data.spaces import Spaces
from offroad.errors import OffroadError
from offroad.export import export_policy
from offroad.skills import LatentActions, PrimitivePolicy
from offroad.train import evaluate, offline

KEY = jax.random.key(0)


def test_one_step_plays_one_primitive_in_every_world_and_ends_it_where_the_episode_ends():
    options = [{}, {"goal": 0.25}, {"limit": 7}, {"limit": 3, "start": 0.1}, {"goal": -0.2, "start": 0.4}]
    env, rng = LatentActions(worlds(*options), tuned(), discount=0.9), np.random.default_rng(0)
    act = jax.jit(lambda seen, latent: tuned().act(seen, latent))
    alone = [Walk(**each) for each in options]
    found, _ = env.reset(seed=0)
    expected = np.stack([each.reset()[0] for each in alone])
    ends = np.zeros(2, int)
    for _ in range(8):
        np.testing.assert_allclose(found, expected, atol=1e-5)
        latent = rng.uniform(-1, 1, (5, 4)).astype(np.float32)
        found, reward, terminated, truncated, info = env.step(latent)
        for i, world in enumerate(alone):
            total, over, cut = 0.0, False, False
            for age in range(LENGTH):
                action = np.clip(act(expected[i : i + 1], latent[i : i + 1])[0], -2, 2)
                expected[i], paid, over, cut, last = world.step(np.asarray(action))
                total += 0.9**age * paid
                if over or cut:
                    break
            assert (terminated[i], truncated[i]) == (over, cut)
            assert reward[i] == pytest.approx(total)
            assert info["steps"][i] == age + 1
            ends += [over, cut]
            if over or cut:
                np.testing.assert_allclose(info["final_obs"][i], expected[i], atol=1e-5)
                assert info["final_info"]["t"][i] == last["t"]
                expected[i] = world.reset()[0]
        np.testing.assert_array_equal(info.get("_final_obs", np.zeros(5, bool)), terminated | truncated)
    assert ends.min() > 2


def test_any_agent_learns_in_it():
    env = LatentActions(worlds(*[{}] * 3), tuned())
    assert env.single_action_space == tuned().latent_spaces.action
    result = train_sac(env, 90)
    assert result.agent.spaces.action == env.single_action_space
    assert evaluate(tuned().wrap(result.agent), worlds({}, mode=AutoresetMode.SAME_STEP), 2).returns.shape == (2,)


def test_environments_that_do_not_fit_are_refused():
    with pytest.raises(OffroadError, match="where no world can wait for the others"):
        LatentActions(worlds({}, mode=AutoresetMode.SAME_STEP), tuned())
    with pytest.raises(OffroadError, match="give the environment that they were learnt for"):
        LatentActions(steps_env({}, mode=AutoresetMode.DISABLED), tuned())
    with pytest.raises(OffroadError, match="still learning"):
        LatentActions(worlds({}), free())


def test_a_policy_keeps_its_primitive_for_its_length_world_by_world():
    agent = BC.create(tuned().latent_spaces, BCConfig(hidden=(8,)), KEY)
    policy, rng = tuned().wrap(agent), np.random.default_rng(0)
    act = jax.jit(lambda seen, memory: policy.act(seen, None, memory))
    memory, age, latent = policy.initial_memory(2), np.zeros(2, int), np.zeros((2, 4), np.float32)
    for t in range(3 * LENGTH):
        if t == 7:  # an episode of the second world ended
            initial = policy.initial_memory(2)
            memory = jax.tree.map(lambda new, old: old.at[1].set(new[1]), initial, memory)
            age[1] = 0
        seen = rng.standard_normal((2, 2)).astype(np.float32)
        chosen = np.asarray(agent.act(seen)[0])
        latent = np.where((age % LENGTH == 0)[:, None], chosen, latent)
        action, memory = act(seen, memory)
        np.testing.assert_allclose(action, tuned().act(seen, jnp.asarray(latent)), atol=1e-5)
        age += 1
    np.testing.assert_allclose(memory[0], latent, atol=1e-6)


def test_ten_demonstrations_show_where_to_go():
    """Primitives know all directions; demonstrations of going right, cloned in latent actions, choose one."""
    rng = np.random.default_rng(0)
    everything = walks(40, 20, seed=5)
    right = walks(200, 5, seed=6)
    shown = right.take(np.flatnonzero(right.actions.reshape(200, 5, 2)[..., 0].mean(1) > 1)[:10])
    assert everything.actions[:, 0].mean() < 0.3
    env = worlds(*[{"start": rng.uniform(-1, 0), "limit": 30} for _ in range(4)], mode=AutoresetMode.SAME_STEP)
    agent = BC.create(tuned().latent_spaces, BCConfig(hidden=(32,), batch=32), KEY)
    policy, _ = learnt(tuned().wrap(agent), tuned().relabel(shown, 1.0), 200)
    assert evaluate(policy, env, 4).returns.mean() == 1


def test_an_agent_over_primitives_is_normalised_by_its_data():
    agent = TD3BC.create(tuned().latent_spaces, TD3BCConfig(hidden=(4,), batch=8), KEY)
    data = tuned().relabel(walks(), 0.9)
    moments = offline(tuned().wrap(agent), data, 20, progress=False).agent.agent.observation_norm.moments
    np.testing.assert_allclose(moments.mean, data.observations.mean(0), atol=1e-5)
    np.testing.assert_allclose(moments.var, data.observations.var(0), rtol=1e-4)


def test_learning_from_relabelled_data_finds_the_goal():
    data = walks(80, 30, seed=7, goal=0.9)
    config = IQLConfig(hidden=(32, 32), batch=64, learning_rate=3e-3, discount=0.9**LENGTH, expectile=0.9)
    agent = IQL.create(tuned().latent_spaces, config, KEY)
    policy, _ = learnt(tuned().wrap(agent), tuned().relabel(data, 0.9), 600)
    env = worlds(*[{"goal": 0.9, "start": x, "limit": 30} for x in (-0.8, -0.4, 0.0)], mode=AutoresetMode.SAME_STEP)
    assert evaluate(policy, env, 3).returns.mean() == 1


def test_a_policy_over_primitives_is_exported_with_its_memory(tmp_path):
    agent = BC.create(tuned().latent_spaces, BCConfig(hidden=(8,)), KEY)
    policy, rng = tuned().wrap(agent), np.random.default_rng(0)
    jaxtyping.config.update("jaxtyping_disable", True)  # sizes are symbols while a policy is traced
    try:
        export_policy(policy, tmp_path)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    exported = runpy.run_path(str(tmp_path / "policy.py"))["Policy"](tmp_path / "policy.npz")
    memory = policy.initial_memory(1)
    for _ in range(2 * LENGTH + 1):
        seen = rng.standard_normal((1, 2)).astype(np.float32)
        action, memory = policy.act(seen, None, memory)
        np.testing.assert_allclose(exported(seen[0]), np.clip(action, -2, 2)[0], atol=1e-5)


def test_agents_and_spaces_must_fit():
    with pytest.raises(OffroadError, match="create it with primitives"):
        tuned().wrap(BC.create(Spaces.of(worlds({})), BCConfig(), KEY))
    policy = PrimitivePolicy.create(tuned().spaces, BCConfig(hidden=(8,)), KEY, primitives=tuned(), agent=BC)
    assert policy.spaces == tuned().spaces
    with pytest.raises(OffroadError, match="learnt in other spaces"):
        PrimitivePolicy.create(Spaces.of(steps_env({})), BCConfig(), KEY, primitives=tuned(), agent=BC)
