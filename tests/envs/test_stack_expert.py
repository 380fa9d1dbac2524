"""The scripted expert: it succeeds, from any state, and has no memory."""

import numpy as np
import pytest

from offroad.envs.stack import Stack
from offroad.envs.stack.expert import Expert
from offroad.errors import OffroadError


def solve(env, expert, observation):
    """Acts until the episodes end; returns whether each stands."""
    while True:
        observation, _, _, truncated, info = env.step(expert.act(observation))
        if truncated.all() or info["success_strict"].all():
            return env.stands()


def from_state(blocks, goals, hand=(0.0, 0.0, 0.2), seed=0, **kwargs):
    """A world with blocks where they are wanted, and its first observation."""
    env = Stack(1, blocks=len(blocks), autoreset_mode="Disabled", num_threads=1, **kwargs)
    env.reset(seed=seed)
    qpos = env.qpos[0].copy()
    qpos[:3] = hand
    qpos[5:].reshape(-1, 7)[:, :3] = blocks
    state = {"qpos": qpos, "qvel": np.zeros(env.qvel.shape[1]), "goals": np.asarray(goals, float)}
    return env, env.reset(options={"state": state})[0]


@pytest.mark.parametrize(
    ("task", "blocks", "decision"),
    [("tower", 3, "long"), ("tower", 1, "short"), ("towers", 3, "long"), ("pyramid", 3, "long"), ("pick", 2, "long")],
)
def test_it_solves_every_task(task, blocks, decision):
    env = Stack(16, blocks=blocks, task=task, decision=decision, autoreset_mode="Disabled", num_threads=1)
    observation, _ = env.reset(seed=1000)
    assert solve(env, Expert(decision), observation).mean() >= 15 / 16


def test_it_needs_no_more_than_its_observation_and_each_world_is_on_its_own():
    env = Stack(6, blocks=4)
    observation, _ = env.reset(seed=0)
    for count in (1, 2, 3):
        env.reset(options={"reset_mask": np.arange(6) == count, "blocks": count})
    order = np.random.default_rng(0).permutation(6)
    for _ in range(12):
        actions = Expert().act(observation)
        assert actions in env.action_space
        assert np.array_equal(Expert().act({k: v[order] for k, v in observation.items()}), actions[order])
        assert np.array_equal(Expert().act({k: v[2:3] for k, v in observation.items()}), actions[2:3])
        observation = env.step(actions)[0]


def test_slots_without_blocks_do_not_matter():
    small, large = (Stack(4, blocks=blocks) for blocks in (2, 5))
    seen = [env.reset(seed=3, options={"blocks": 2})[0] for env in (small, large)]
    for _ in range(10):
        actions = [Expert().act(observation) for observation in seen]
        assert np.allclose(*actions, atol=1e-5)
        seen = [env.step(actions[0])[0] for env in (small, large)]


@pytest.mark.parametrize("decision", ["long", "short"])
def test_it_takes_over_wherever_others_left_off(decision):
    env = Stack(16, blocks=2, decision=decision, autoreset_mode="Disabled", num_threads=1)
    observation, _ = env.reset(seed=5)
    random, expert = np.random.default_rng(0), Expert(decision)
    for _ in range(20):
        mistaken = random.random((16, 1)) < 0.5
        noise = random.uniform(-1, 1, (16, 4))
        observation = env.step(np.where(mistaken, noise, expert.act(observation)))[0]
    again = [env.world_state(i) for i in range(16)]
    for world, state in enumerate(again):
        observation, _ = env.reset(options={"reset_mask": np.arange(16) == world, "state": state})
    assert solve(env, expert, observation).mean() >= 14 / 16


def test_it_clears_the_site_first():
    env, observation = from_state([[0.1, 0.1, 0.025], [-0.1, 0.02, 0.025]], [[-0.1, 0, 0.025], [-0.1, 0, 0.075]])
    moved = 0
    while observation["objects"][0, 0, 2] < 0.03:  # until the lowest block is lifted
        observation = env.step(Expert().act(observation))[0]
        moved = max(moved, np.abs(observation["objects"][0, 1, :2] - [-0.1, 0.02]).max())
    assert moved > 0.07
    assert solve(env, Expert(), observation).all()


@pytest.mark.parametrize(
    ("gap", "decision"),
    [([0.0, 0.06], "long"), ([0.0, 0.052], "short"), ([0.03, 0.053], "long"), ([0.055, 0.03], "long")],
)
def test_it_separates_blocks_that_no_finger_fits_between(gap, decision):
    blocks = [[-0.1, -0.1, 0.025], [-0.1 + gap[0], -0.1 + gap[1], 0.025]]
    env, observation = from_state(blocks, [[0.1, 0.1, 0.025], [0.1, 0.1, 0.075]], decision=decision)
    assert solve(env, Expert(decision), observation).all()


def test_it_rebuilds_what_is_in_the_wrong_order():
    env, observation = from_state([[0.1, 0.1, 0.075], [0.1, 0.1, 0.025]], [[0.1, 0.1, 0.025], [0.1, 0.1, 0.075]])
    env._limits[:] = 60
    assert solve(env, Expert(), observation).all()


def test_it_holds_a_block_in_the_air_when_all_others_are_in_place():
    goals = [[0.0, 0.1, 0.3], [0.1, 0.0, 0.025]]
    env, observation = from_state([[-0.1, 0, 0.025], [0.1, -0.1, 0.025]], goals)
    assert solve(env, Expert(), observation).all()
    assert env.qpos[0, 2] == pytest.approx(0.3, abs=0.01)


def test_it_rests_when_all_is_done():
    env = Stack(2, blocks=2, autoreset_mode="Disabled")
    observation, _ = env.reset(seed=0, options={"built": 2})
    for _ in range(6):
        observation, *_, info = env.step(Expert().act(observation))
    assert info["success_strict"].all()
    assert env.stands().all()
    assert np.abs(Expert().act(env._observe())[:, :3]).max() < 0.05


def test_an_unknown_decision():
    with pytest.raises(OffroadError, match="did you mean 'long'"):
        Expert("lon")
